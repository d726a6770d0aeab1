"""The trained teacher as a judge of pairs: the `transformers` engine."""

import logging
from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np

from ray_app.base.schemas import NUM_GRADES
from ray_app.base.storage import Storage
from ray_app.models.devices import pick_device, pick_dtype, use_cpu_threads
from ray_app.models.packed import can_pack, group_pairs, pack, packed_states, packs_alike
from ray_app.models.tokens import PairIds, max_query_tokens
from ray_app.stages.label.pair_scorer import PairScores, query_too_long
from ray_app.tables.local_folder import local_folder
from ray_app.tables.manifest import Output

logger = logging.getLogger(__name__)


class Teacher:
    """Grades pairs. Plain decoders read them packed, each pin once for all its queries (`ray_app.models.packed`); other
    models in padded batches of equal length, as nearly as there are such. Both give the same labels.

    Args:
        store: Where the model lies.
        output: The `teacher` output of stage `train_teacher`.
        dtype: `float32`, `bfloat16` or `auto`; of the language model, the head is float32.
        batch_size: Pairs per forward pass.
        cpu_threads: See `pick_device`.
        prefix_sharing: False: each pair is read alone, for comparison.
    """

    def __init__(
        self,
        store: Storage,
        output: Output,
        dtype: str,
        batch_size: int,
        cpu_threads: int = 0,
        prefix_sharing: bool = True,
    ) -> None:
        import torch

        from ray_app.models.cross_encoder import CrossEncoder

        self.device = pick_device(cpu_threads)
        self.model = CrossEncoder.from_pretrained(local_folder(store, output))
        self.model.merge_adapters()
        self.model.backbone.to(self.device, getattr(torch, pick_dtype(dtype, self.device)))
        self.batch_size = batch_size
        self.max_group = batch_size if prefix_sharing else 1
        cfg = self.model.cfg
        self.packs = self.model.query_last and cfg.pooling == "last" and self._can_pack(cfg.max_tokens)
        self.max_query = max_query_tokens(self.model.tokenizer, cfg.max_tokens, self.model.query_last)
        # The first pass sets up the kernels; without it the first block's time would be no measure of the others'.
        self.score(["warm"], ["up"], np.zeros((1, len(self.model.head.scaler.mean)), np.float32))

    def _can_pack(self, max_tokens: int) -> bool:
        backbone = self.model.backbone
        if not can_pack(backbone, max_tokens):
            reason = "is not known to read a pair by causal attention alone"
        elif not packs_alike(backbone, max_tokens, self.device):
            reason = "gives packed pairs other states than the same pairs alone"
        else:
            return True
        logger.warning(
            "label: this %s %s; pairs are labelled in padded batches: the same labels, but nothing is shared between the "
            "queries of a pin", backbone.config.model_type, reason,
        )  # fmt: skip
        return False

    def score(self, queries: Sequence[str], pin_texts: Sequence[str], features: np.ndarray) -> PairScores:
        """Probabilities of grades 1..5 for each pair; see `PairScorer`."""
        use_cpu_threads()
        pairs = self.model.preparer.pair_ids(queries, pin_texts)
        errors = [query_too_long(pair.query_tokens, self.max_query) for pair in pairs]
        probs = np.full((len(pairs), NUM_GRADES), np.nan, np.float32)
        computed = 0
        # Batches depend on the block's rows alone, so that equal blocks give equal bytes.
        usable = [i for i, error in enumerate(errors) if error is None]
        if self.packs:
            batches = self._packed_batches(sorted(usable, key=lambda i: (pin_texts[i], queries[i])), pairs)
        else:
            batches = self._padded_batches(sorted(usable, key=lambda i: (-len(pairs[i].ids), i)))
        for groups in batches:
            rows = list(chain.from_iterable(groups))
            computed += self._grade([[pairs[i] for i in group] for group in groups], rows, features, probs, errors)
        return PairScores(
            probs=probs,
            errors=errors,
            tokens=np.array([0 if error else len(p.ids) for p, error in zip(pairs, errors, strict=True)], np.int64),
            computed_tokens=computed,
        )

    def _padded_batches(self, rows: list[int]) -> Iterator[list[list[int]]]:
        for start in range(0, len(rows), self.batch_size):
            yield [[row] for row in rows[start : start + self.batch_size]]

    def _packed_batches(self, rows: list[int], pairs: list[PairIds]) -> Iterator[list[list[int]]]:
        """Whole groups, about `batch_size` pairs together."""
        place = iter(rows)
        waiting: list[list[int]] = []
        for group in group_pairs([pairs[i] for i in rows], self.max_group):
            waiting.append([next(place) for _ in group])
            if sum(map(len, waiting)) >= self.batch_size:
                yield waiting
                waiting = []
        if waiting:
            yield waiting

    def _grade(
        self,
        groups: list[list[PairIds]],
        rows: list[int],
        features: np.ndarray,
        probs: np.ndarray,
        errors: list[str | None],
    ) -> int:
        """Fill `probs` at `rows`, or `errors` where the model refuses a row; returns how many tokens were computed."""
        try:
            states, num_tokens = self._states(groups)
        except (ValueError, IndexError, TypeError) as error:
            if len(rows) == 1:
                errors[rows[0]] = f"engine: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
                return 0
            flat = [pair for group in groups for pair in group]
            return sum(
                self._grade([[pair]], [row], features, probs, errors) for pair, row in zip(flat, rows, strict=True)
            )
        probs[rows] = self.model.head.probs(states, features[rows])
        return num_tokens

    def _states(self, groups: list[list[PairIds]]) -> tuple[np.ndarray, int]:
        """Pooled states (B, K, hidden size), and the number of tokens that they took."""
        import torch

        with torch.inference_mode():
            if self.packs:
                packed = pack(groups)
                states = packed_states(self.model.backbone, packed, self.device).unsqueeze(1)
                return states.cpu().numpy(), len(packed.input_ids)
            rows = [pair for group in groups for pair in group]
            batch = self.model.preparer.pad(rows)
            states = self.model.states({name: tensor.to(self.device) for name, tensor in batch.items()})
        return states.cpu().numpy(), sum(len(row.ids) for row in rows)
