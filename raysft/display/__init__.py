"""How plans, results, scores, predictions, data sets and running runs look on the console."""
