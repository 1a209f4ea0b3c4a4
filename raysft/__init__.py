"""Fine-tune a pretrained model on your own labelled data, on a laptop or any Ray cluster, from one
job file.
"""

__version__ = "0.1.0"
