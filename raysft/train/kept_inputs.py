"""What a worker keeps from trial to trial: networks as trials start with them, splits, features."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import ray

from raysft.data.epochs import KeptSplit, SplitReader, open_reader
from raysft.data.pixels import Preparer
from raysft.data.preparation import Preparation
from raysft.data.staging import keep_on_gpu
from raysft.job.spec import Model
from raysft.records.documents import LoadedWeights
from raysft.train.features import compute_features
from raysft.train.modeling import Loaded, Network, build_network
from raysft.train.queue.assignment import Assignment, HandedSplit
from raysft.train.setup import Setup
from raysft.train.team import Team
from raysft.train.tryout import try_network
from raysft.train.weights import ExpectedImages

NETWORKS_KEPT = 4  # of a search over networks; each is only a copy in memory
FEATURES_KEPT = 2  # the training and validation split of one network, however large


class KeptInputs:
    """Made when first asked for; `report` is told once of each network with pretrained weights."""

    def __init__(self, setup: Setup, team: Team, report: Callable[[LoadedWeights], None]) -> None:
        self.setup, self.team, self.report = setup, team, report
        self.splits: Mapping[str, HandedSplit] = {}
        self._readers: dict[str, SplitReader] = {}
        self._networks: dict[tuple[Model, int], Network] = {}
        self._features: dict[tuple[Model, int | None, str], KeptSplit | None] = {}

    # --- networks -------------------------------------------------------------------------------

    def find_network(self, spec: Model, seed: int) -> Network | None:
        """The network of `spec` where it is made already."""
        return self._networks.get((spec, seed))

    def network(self, spec: Model, seed: int) -> Network:
        """The network of `spec` as trials start with it."""
        known = self._networks.get((spec, seed))
        if known is not None:
            return known
        made = build_network(spec, self.setup.classes, seed)
        try_network(made.net, spec.name, self.setup.classes, *self.image_size(spec))
        while len(self._networks) >= NETWORKS_KEPT:
            oldest = next(iter(self._networks))
            del self._networks[oldest]
        self._networks[spec, seed] = made
        if self.team.rank == 0 and made.loaded is not None:
            self.report(_describe_loaded(spec, made.loaded, self.preparation(spec, made)))
        return made

    def image_size(self, spec: Model) -> tuple[int, int]:
        """(height, width) of images as the network sees them."""
        side = spec.image_size or self.setup.usual_size
        return (side, side) if side else self.setup.decoded

    def preparation(self, spec: Model, network: Network) -> Preparation:
        """What images go through: as the job says, else as the weights say, else as the data is."""
        of_data = ExpectedImages(self.setup.data_mean, self.setup.data_std)
        expected = network.images or of_data
        return Preparation(
            self.setup.mean or expected.mean,
            self.setup.std or expected.std,
            spec.image_size or self.setup.usual_size,
            spec.interpolation or expected.interpolation,
        )

    # --- images ---------------------------------------------------------------------------------

    def reader(self, split: str) -> SplitReader:
        """The images of a split, which all trials of this worker read."""
        known = self._readers.get(split)
        if known is not None:
            return known
        handed = self.splits[split]
        content = ray.get(handed) if isinstance(handed, ray.ObjectRef) else handed
        reader = open_reader(content)
        if isinstance(reader, KeptSplit):
            reader = self._keep_on_gpu(reader)
        self._readers[split] = reader
        return reader

    def features(
        self, assignment: Assignment, network: Network, prepare: Preparer, split: str
    ) -> KeptSplit | None:
        """A split as features of the untrained backbone of a network, made once for all trials."""
        reader = self.reader(split)
        if not isinstance(reader, KeptSplit):
            return None
        # Pretrained backbones are the same whatever the seed of the trial.
        seed = assignment.seed if network.loaded is None else None
        key = (assignment.model, seed, split)
        if key not in self._features:
            self._features[key] = self._compute(assignment, network, prepare, reader)
            self._drop_features()
        return self._features.get(key)

    def _compute(
        self, assignment: Assignment, network: Network, prepare: Preparer, reader: KeptSplit
    ) -> KeptSplit | None:
        net = copy.deepcopy(network.net)
        net = self.team.to_device(net, assignment.train.channels_last)
        limit = self.setup.feature_bytes
        made = compute_features(reader, net, network.head, prepare, self.team, limit)
        return None if made is None else self._keep_on_gpu(made)

    def _drop_features(self) -> None:
        """Drop the oldest features beyond the limit; the job's limit is for each split."""
        while len(self._features) > FEATURES_KEPT:
            held = sum(kept.nbytes for kept in self._features.values() if kept is not None)
            if held <= self.setup.feature_bytes:
                return
            oldest = next(iter(self._features))
            del self._features[oldest]

    def _keep_on_gpu(self, split: KeptSplit) -> KeptSplit:
        return keep_on_gpu(split, self.team.device, self.setup.resources.gpus_per_worker)


def _describe_loaded(spec: Model, loaded: Loaded, preparation: Preparation) -> LoadedWeights:
    return {
        "name": spec.name,
        "weights": spec.weights,
        "loaded": loaded.loaded,
        "new": list(loaded.new),
        "unfit": list(loaded.unfit),
        "total": loaded.total,
        "source": loaded.source,
        "mean": list(preparation.mean),
        "std": list(preparation.std),
        "image_size": preparation.image_size,
        "interpolation": preparation.interpolation,
    }
