"""Images -> embeddings: each image is decoded once, every backbone sees it, whole blocks are written, and a run that was cut
short goes on where it stopped.

Bits: every forward pass has the same shape (the last of a block is filled up with black images) and the same place in
its block, and on a CPU one thread computes it, so the same machine, torch, device and batch size give the same bits,
whatever the number of workers, the company of other backbones, or interruptions. torch promises no more: another batch
size or machine may choose another convolution algorithm and differ in the last bits, which is why these are kept beside
the embeddings.
"""

from __future__ import annotations

from fastxfer.embed.again import embed_again
from fastxfer.embed.plan import Plan, Plans, plan
from fastxfer.embed.run import Embedded, embed
from fastxfer.ranks import team_of_environment

__all__ = ["Embedded", "Plan", "Plans", "embed", "embed_again", "plan", "team_of_environment"]
