"""GraphSAGE on the graph of pins and boards: a node's vector from its own text and a mean over its neighbors'.

Two layers of SAGEConv per kind of node, trained on which pin is on which board. A node may lack neighbors, so a query
is a new board with the query as its title. Plain torch and torch_geometric, no Ray: `train` is one call.
Sources: https://arxiv.org/abs/1706.02216 (GraphSAGE), https://arxiv.org/abs/1806.01973 (PinSage).
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_app.base.config import GraphConfig
from ray_app.features.query_tower import QueryTower
from ray_app.training.contrastive import (
    batches,
    false_negative_mask,
    log_frequency,
    recall,
    sampled_softmax_loss,
    svd_components,
)

MAX_MEASURED = 2_000  # guessed: held-out saves that recall is measured on: enough for two digits
KINDS = ("pin", "board")


@dataclass(frozen=True, kw_only=True, slots=True)
class NeighborGraph:
    """Adjacency of one kind of node to the other, by rows: neighbors of node i are index[start[i] : start[i + 1]]."""

    start: np.ndarray  # (num_nodes + 1,) int64
    index: np.ndarray  # (num_edges,) int64

    @classmethod
    def of(cls, nodes: np.ndarray, others: np.ndarray, num_nodes: int) -> "NeighborGraph":
        """From edges (nodes[i], others[i])."""
        order = np.lexsort((others, nodes))
        start = np.concatenate([[0], np.cumsum(np.bincount(nodes, minlength=num_nodes))])
        return cls(start=start.astype(np.int64), index=others[order].astype(np.int64))

    def sample(
        self, nodes: np.ndarray, count: int, rng: np.random.Generator, without: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """`count` neighbors of each node, drawn with replacement; none of a node that has none.

        Args:
            nodes: (n,).
            count: Draws per node.
            rng: Source of chance.
            without: (n,) the neighbor of each node that must not be drawn; -1: any may.

        Returns:
            (neighbors, places): neighbors[i] is one of nodes[places[i]].
        """
        degree = np.diff(self.start)[nodes]
        drawn = (rng.random((len(nodes), count)) * degree[:, None]).astype(np.int64) + self.start[nodes][:, None]
        places = np.repeat(np.arange(len(nodes)), count)[np.repeat(degree > 0, count)]
        found = self.index[drawn[degree > 0].ravel()]
        if without is None:
            return found, places
        kept = found != without[places]
        return found[kept], places[kept]

    def matrix(self, num_others: int) -> Any:
        """As a sparse CSR tensor (num_nodes, num_others), over which SAGEConv takes means without a copy per edge."""
        import torch

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*(CSR|invariant)")
            return torch.sparse_csr_tensor(
                torch.from_numpy(self.start), torch.from_numpy(self.index), torch.ones(len(self.index)),
                size=(len(self.start) - 1, num_others), check_invariants=True,
            )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A trained model.

    Args:
        tower: Of queries, which are boards without pins.
        pin_vectors: (num_pins, dim) float32 unit vectors.
        board_vectors: (num_boards, dim) float32 unit vectors.
        info: Recall and losses.
    """

    tower: QueryTower
    pin_vectors: np.ndarray
    board_vectors: np.ndarray
    info: dict[str, Any]


def train(
    board: np.ndarray, pin: np.ndarray, boards: np.ndarray, pins: np.ndarray, cfg: GraphConfig, seed: int
) -> Graph:
    """Train on the saves that are not held out, measure on those that are, and make vectors from all.

    The same on any machine that computes the same sums; the caller sets the number of threads, which decides their order.

    Args:
        board: (num_saves,) int64, the board of each distinct save; may be none.
        pin: (num_saves,) int64, its pin.
        boards: (num_boards, width) float32 zero-shot vectors of the boards' titles, zeros without one.
        pins: (num_pins, width) float32 zero-shot vectors of the pins' texts.
        cfg: Settings.
        seed: Decides the first weights, held-out saves, the order of saves, and the neighbors drawn.
    """
    import torch

    rng = np.random.default_rng(seed)
    held_out = rng.random(len(board)) < cfg.holdout_fraction
    nodes = {"pin": torch.tensor(pins), "board": torch.tensor(boards)}
    model = _build_model(svd_components(pins, cfg.dim), cfg.hidden_dim, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=cfg.learning_rate)

    b, p = board[~held_out], pin[~held_out]
    around = {"pin": NeighborGraph.of(p, b, len(pins)), "board": NeighborGraph.of(b, p, len(boards))}
    log_prob = log_frequency(p, len(pins))
    codes = np.sort(b * len(pins) + p)
    losses = []
    for _ in range(cfg.epochs):
        total, steps = 0.0, batches(len(b), cfg.batch_size, rng)
        for step in steps:
            vectors = _sampled(model, nodes, around, {"board": b[step], "pin": p[step]}, cfg, rng)
            loss = sampled_softmax_loss(
                vectors["board"] @ vectors["pin"].T,
                torch.from_numpy(log_prob[p[step]]),
                torch.from_numpy(false_negative_mask(b[step], p[step], codes, len(pins))),
                torch.ones(len(step)),
                cfg.temperature,
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) / len(steps)
        losses.append(round(total, 4))

    measured = np.flatnonzero(held_out)
    if len(measured) > MAX_MEASURED:
        measured = rng.choice(measured, MAX_MEASURED, replace=False)
    asked, wanted = board[measured], pin[measured]
    tower = _tower_of(model)
    with torch.no_grad():
        seen = _whole(model, nodes, around)
        around = {"pin": NeighborGraph.of(pin, board, len(pins)), "board": NeighborGraph.of(board, pin, len(boards))}
        vectors = _whole(model, nodes, around)
    info = {
        "recall_at_10": recall(seen["board"], seen["pin"], asked, wanted, codes),
        "recall_at_10_title_only": recall(tower.encode(boards), seen["pin"], asked, wanted, codes),
        "recall_at_10_zero_shot": recall(boards, pins, asked, wanted, codes),
        "measured_saves": len(measured),
        "measured_among_pins": len(pins),
        "losses": losses,
    }
    return Graph(tower=tower, pin_vectors=vectors["pin"], board_vectors=vectors["board"], info=info)


def _build_model(axes: np.ndarray, hidden: int, seed: int) -> Any:
    """Per kind a projection of the node's own vector and two layers; the last starts as zeros, see `svd_components`."""
    import torch
    from torch_geometric.nn import SAGEConv

    dim, width = axes.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = torch.nn.ModuleDict()
        for kind in KINDS:
            model[f"{kind}_skip"] = torch.nn.Linear(width, dim, bias=False)
            model[f"{kind}_hidden"] = SAGEConv((width, width), hidden)
            model[f"{kind}_out"] = SAGEConv((hidden, hidden), dim)
    with torch.no_grad():
        for kind in KINDS:
            model[f"{kind}_skip"].weight.copy_(torch.from_numpy(axes))
            for parameter in model[f"{kind}_out"].parameters():
                parameter.zero_()
    return model


def _other(kind: str) -> str:
    return "board" if kind == "pin" else "pin"


def _sampled(
    model: Any, nodes: dict[str, Any], around: dict[str, NeighborGraph], seeds: dict[str, np.ndarray], cfg: GraphConfig,
    rng: np.random.Generator,
) -> dict[str, Any]:  # fmt: skip
    """Unit vectors (B, dim) by kind of the nodes of B saves, from sampled neighbors, the other end never among them."""
    import torch
    from torch.nn.functional import normalize

    count = len(seeds["pin"])
    # What the first layer computes, by kind: the seeds, and behind them the other kind's neighbors.
    first, second, without = {}, {}, {}
    for kind in KINDS:
        found, places = around[kind].sample(seeds[kind], cfg.neighbors, rng, seeds[_other(kind)])
        kept = (rng.random(count) >= cfg.neighbor_dropout)[places]
        found, second[kind] = found[kept], places[kept]
        first[_other(kind)] = np.concatenate([seeds[_other(kind)], found])
    hidden = {}
    for kind in KINDS:
        free = np.full(len(first[kind]) - count, -1)
        without = np.concatenate([seeds[_other(kind)], free])
        found, places = around[kind].sample(first[kind], cfg.neighbors, rng, without)
        has_own = np.concatenate([np.isin(np.arange(count), second[kind]), np.ones(len(free), bool)])
        kept = has_own[places]  # a seed that is shown without neighbors has none in either layer
        edges = torch.from_numpy(np.stack([found[kept], places[kept]]))
        hidden[kind] = _layer(model[f"{kind}_hidden"], nodes[_other(kind)], nodes[kind][first[kind]], edges).relu()
    made = {}
    for kind in KINDS:
        own = nodes[kind][seeds[kind]]
        edges = torch.from_numpy(np.stack([np.arange(len(second[kind])), second[kind]]))
        out = _layer(model[f"{kind}_out"], hidden[_other(kind)][count:], hidden[kind][:count], edges)
        made[kind] = normalize(model[f"{kind}_skip"](own) + out, dim=1)
    return made


def _layer(layer: Any, others: Any, own: Any, edges: Any) -> Any:
    return layer((others, own), edges, size=(len(others), len(own)))


def _whole(model: Any, nodes: dict[str, Any], around: dict[str, NeighborGraph]) -> dict[str, np.ndarray]:
    """Unit vectors of all nodes by kind, each from all of its neighbors."""
    from torch.nn.functional import normalize

    edges = {kind: around[kind].matrix(len(nodes[_other(kind)])) for kind in KINDS}
    hidden = {kind: model[f"{kind}_hidden"]((nodes[_other(kind)], nodes[kind]), edges[kind]).relu() for kind in KINDS}
    made = {}
    for kind in KINDS:
        out = model[f"{kind}_out"]((hidden[_other(kind)], hidden[kind]), edges[kind])
        made[kind] = normalize(model[f"{kind}_skip"](nodes[kind]) + out, dim=1).numpy()
    return made


def _tower_of(model: Any) -> QueryTower:
    """Embedding of a board without pins: SAGEConv adds a mean over nothing, which is zero, and a bias."""
    hidden, out = model["board_hidden"], model["board_out"]
    weights = {
        "skip.weight": model["board_skip"].weight,
        "hidden.weight": hidden.lin_r.weight,
        "hidden.bias": hidden.lin_l.bias,
        "out.weight": out.lin_r.weight,
        "out.bias": out.lin_l.bias,
    }
    return QueryTower(weights={name: value.detach().numpy() for name, value in weights.items()})
