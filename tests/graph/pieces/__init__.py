"""The pieces that networks are made of: small blocks that cover what CNNs and their hybrids do with channels."""

from __future__ import annotations

from tests.graph.pieces.attention import ATTENTION
from tests.graph.pieces.convolutions import CONVOLUTIONS
from tests.graph.pieces.copies import COPIES
from tests.graph.pieces.cuts import CUTS
from tests.graph.pieces.flow import FLOW
from tests.graph.pieces.gates import GATES
from tests.graph.pieces.layouts import LAYOUTS
from tests.graph.pieces.networks import NETWORKS
from tests.graph.pieces.norms import NORMS
from tests.graph.pieces.piece import Block, Network, Piece
from tests.graph.pieces.sizes import SIZES
from tests.graph.pieces.weights import WEIGHTS

PIECES: dict[str, Piece] = CUTS | COPIES | LAYOUTS | SIZES | CONVOLUTIONS | WEIGHTS | NORMS | GATES | ATTENTION | FLOW

__all__ = ["NETWORKS", "PIECES", "Block", "Network", "Piece"]
