"""`fastxfer embed`."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import click

from fastxfer.cli.cluster import slurm_options
from fastxfer.cli.common import F, ManyValues, data_root_option, emit_json, json_option, print_table, store_option
from fastxfer.errors import UsageError
from fastxfer.progress import say


def parse_arch_args(words: tuple[str, ...], option: str = "--arch-arg") -> dict[str, Any]:
    """``("pad_type=same", "depth=3")`` -> ``{"pad_type": "same", "depth": 3}``; what is no Python literal is a word."""
    found = {}
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or not key.isidentifier():
            raise UsageError(f"{option} {word}: expected name=value, such as pad_type=same")
        try:
            found[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[key] = value
    return found


def parse_points(pool: str, layer: str | None) -> list[str]:
    """``("avg,cls", "-1,-2")`` -> ``["avg-1", "avg-2", "cls-1", "cls-2"]``, the words of `backbones.pooling`."""
    layers = [""] if layer is None else [word.strip() for word in layer.split(",")]
    for word in layers:
        if layer is not None and not re.fullmatch(r"-[1-9]\d*", word):
            raise UsageError(f"--layer {layer}: expected layers counted from the last, such as -1,-2")
    return [word.strip() + of for word in pool.split(",") for of in layers]


def _numbers(option: str, words: str | None, kind: type) -> tuple[Any, ...] | None:
    if words is None:
        return None
    try:
        return tuple(kind(w) for w in words.split(","))
    except ValueError:
        raise UsageError(f"{option} {words}: expected numbers with commas between, such as 0.485,0.456,0.406") from None


def _say_plan(plans: Any) -> None:
    from fastxfer.report.words import duration

    rows = [
        (
            p.backbone,
            p.target,
            f"{p.n_missing:,} of {p.n_images:,}",
            p.batch_size,
            f"{p.decode_ms:.1f} ms",
            f"{p.forward_ms:.1f} ms",
            f"{p.images_per_second:,.0f}",
            duration(p.seconds),
            f"{p.bytes / 1e6:,.1f} MB",
        )
        for p in plans.parts
    ]
    heads = ["backbone", "target", "images to do", "batch", "decode", "forward", "images/s", "time", "on disk"]
    print_table(heads, rows)
    click.echo(
        f"\nTogether about {duration(plans.seconds)} with {plans.workers} worker{'s' if plans.workers > 1 else ''} on "
        f"{plans.device} and {plans.memory_bytes / 1e9:,.1f} GB of memory; {plans.bytes / 1e6:,.1f} MB of embeddings, with "
        f"--cache disk {plans.cache_bytes / 1e6:,.1f} MB of pixels besides. Nothing was written."
    )


def preprocessing_options(f: F) -> F:
    """What goes before a checkpoint's own preprocessing; `parse_preprocessing` takes the values."""
    for option in (
        click.option(
            "--crop-mode",
            type=click.Choice(["center", "squash", "border"]),
            help="How the image meets the square [likewise].",
        ),
        click.option("--interpolation", help="bilinear, bicubic … [likewise]."),
        click.option(
            "--fast-jpeg",
            is_flag=True,
            default=None,
            help="Decode large JPEG files at a half, a quarter or an eighth of their size; features move slightly.",
        ),
        click.option("--crop-pct", type=float, help="Share of the resized image that is kept [likewise]."),
        click.option("--std", metavar="S[,S,S]", help="Standard deviation of pixels [likewise]."),
        click.option("--mean", metavar="M[,M,M]", help="Mean of pixels scaled to 0…1 [likewise]."),
        click.option("--input-size", metavar="C,H,W", help="Input size [default: the checkpoint's or architecture's]."),
    ):
        f = option(f)
    return f


def parse_preprocessing(input_size: str | None, mean: str | None, std: str | None, **others: Any) -> dict[str, Any]:
    """Words of `Preprocessing`, None where nothing was given."""
    return {
        "input_size": _numbers("--input-size", input_size, int),
        "mean": _numbers("--mean", mean, float),
        "std": _numbers("--std", std, float),
        **others,
    }


def _one_each(option: str, given: tuple[str, ...], ckpts: tuple[str, ...], shared: bool) -> tuple[str | None, ...]:
    """What each checkpoint is given: nothing, the one that is `shared`, or its own, where ``-`` is nothing."""
    if shared and len(given) == 1:
        given *= len(ckpts)
    if given and len(given) != len(ckpts):
        expected = "none, one for all" if shared else "none"
        raise UsageError(
            f"{option}: {len(given)} given for {len(ckpts)} --ckpt; expected {expected}, or one a checkpoint (- for those "
            "that need none)"
        )
    return tuple(None if word == "-" else word for word in given) or (None,) * len(ckpts)


@click.command(cls=ManyValues)
@click.option(
    "--ckpt",
    "ckpts",
    required=True,
    multiple=True,
    metavar="FILE|NAME…",
    help="Weights: .safetensors, .pt, .pth, .pth.tar, BiT .npz; a timm or xrv: name, or one of `backbones add`. Several share one pass over the images.",
)
@click.option(
    "--arch",
    "archs",
    multiple=True,
    metavar="NAME…",
    help="timm name, torchvision:NAME, xrv:NAME or FILE.py:function, one for all or one a --ckpt, - for those that say it themselves [default: guessed if the file tells].",
)
@click.option("--arch-arg", "arch_args", multiple=True, metavar="K=V…", help="Keyword arguments of the architecture.")
@click.option(
    "--name", "names", multiple=True, metavar="NAME…", help="Name in the store, one a --ckpt [default: the file's]."
)
@click.option(
    "--source",
    "sources",
    multiple=True,
    metavar="TEXT…",
    help="What it was trained on, one for all or one a --ckpt [default: what the file says, or unknown].",
)
@click.option("--target", "targets", required=True, multiple=True, metavar="NAME…", help="Targets to embed.")
@click.option(
    "--pool",
    default="post",
    show_default=True,
    metavar="POINT[,POINT…]",
    help="Where embeddings are taken: post = what the classifier sees; before = BiT's last block, before GroupNorm and "
    "ReLU; cls = class token; avg = mean of patches (or pixels); both = cls and avg as one. Several: an array each, one pass.",
)
@click.option(
    "--layer",
    metavar="-N[,-N…]",
    help="Layers to take, -1 = the last: blocks of a transformer, stages of a CNN, each with each --pool [default: the end].",
)
@preprocessing_options
@click.option(
    "--dtype", type=click.Choice(["float16", "float32"]), default="float16", show_default=True, help="Stored as."
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "tf32", "float16", "bfloat16"]),
    default="float32",
    show_default=True,
    help="The network computes in.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 …")
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    help="Images a forward pass [default: 1 to 64 by the network's size, on a GPU 256].",
)
@click.option(
    "--workers", type=click.IntRange(min=1), help="Threads that decode and, on a CPU, compute [default: one a core]."
)
@click.option(
    "--block-rows",
    type=click.IntRange(min=1),
    help="Rows written at once, some of which a kill can cost [default: 256, more for millions of images].",
)
@click.option(
    "--cache",
    type=click.Choice(["off", "ram", "disk"]),
    default="off",
    show_default=True,
    help="disk = keep decoded pixels inside the store, for backbones to come.",
)
@click.option(
    "--compile",
    "compiled",
    type=click.Choice(["plain", "graphs"]),
    is_flag=False,
    flag_value="plain",
    help="torch.compile each network first: tens of seconds, needs g++ on a CPU, and gains little there (docs/embeddings.md). "
    "graphs = as a CUDA graph.",
)
@click.option("--plan", "as_plan", is_flag=True, help="Only foretell time, memory and bytes; nothing is written.")
@click.option("--skip-bad", is_flag=True, help="Leave out images that cannot be decoded, instead of stopping.")
@slurm_options()
@store_option
@data_root_option
@json_option
def embed(
    ckpts: tuple[str, ...],
    archs: tuple[str, ...],
    arch_args: tuple[str, ...],
    names: tuple[str, ...],
    sources: tuple[str, ...],
    targets: tuple[str, ...],
    pool: str,
    layer: str | None,
    dtype: str,
    precision: str,
    device: str,
    batch_size: int | None,
    workers: int | None,
    block_rows: int | None,
    cache: str,
    compiled: str | None,
    as_plan: bool,
    skip_bad: bool,
    store_path: str,
    data_root: Path,
    as_json: bool,
    **words: Any,
) -> None:
    """Turn a target's images into embeddings, one forward pass an image.

    Only what the store lacks is done: run it again after an interruption and it goes on. Under torchrun or srun, each
    process takes its share of the rows.

    \b
    Examples:
      fastxfer embed --ckpt r152x4.pt --target chexpert
      fastxfer embed --ckpt resnet50.a1_in1k bit.npz --target photos flowers
      fastxfer embed --ckpt vit_base_patch14_dinov2.lvd142m --target photos --pool avg,cls --layer -1,-2
      fastxfer embed --ckpt mine.pt --arch mine.py:build --input-size 3,224,224 --mean 0.5 --std 0.5 --target photos
      fastxfer embed --ckpt r152x4.pt --target chexpert --plan
      torchrun --nproc-per-node 2 -m fastxfer embed --ckpt r152x4.pt --target chexpert
    """
    keywords = parse_arch_args(arch_args)
    of_each = [
        _one_each("--arch", archs, ckpts, shared=True),
        _one_each("--name", names, ckpts, shared=False),
        _one_each("--source", sources, ckpts, shared=True),
    ]
    points = parse_points(pool, layer)
    preprocessing = parse_preprocessing(**words)
    from fastxfer.targets import load_target

    # The tables are read before torch is: a misspelt target costs no seconds.
    tables = [load_target(t, data_root) for t in dict.fromkeys(targets)]

    from fastxfer.embed import embed as run
    from fastxfer.embed import plan, team_of_environment
    from fastxfer.registered import load_named
    from fastxfer.store import EmbeddingStore

    backbones = [
        backbone
        for ckpt, arch, name, source in zip(ckpts, *of_each, strict=True)
        for backbone in load_named(
            ckpt,
            data_root,
            arch=arch,
            arch_args=keywords,
            name=name,
            source=source,
            pools=points,
            precision=precision,
            preprocessing=preprocessing,
        )
    ]
    if as_plan:
        there = "://" in store_path or Path(store_path).exists()
        plans = plan(
            backbones,
            tables,
            EmbeddingStore.open(store_path) if there else None,
            batch_size=batch_size,
            workers=workers,
            dtype=dtype,
            device=device,
        )
        emit_json(plans.as_dict()) if as_json else _say_plan(plans)
        return
    team = team_of_environment()
    if team:
        say(f"rank {team.rank} of {team.count}: every {team.count}th block of rows is this process's")
    store = EmbeddingStore.open(store_path, mode="a")
    done = run(
        backbones,
        tables,
        store,
        batch_size=batch_size,
        workers=workers,
        skip_bad=skip_bad,
        dtype=dtype,
        device=device,
        block_rows=block_rows,
        cache=cache,
        compiled=compiled or "",
        team=team,
    )
    if as_json:
        if team and team.rank:
            return  # one document is enough
        about = [{"backbone": b.name, **b.provenance()} for b in backbones]
        alone = about[0] if len(about) == 1 else {}
        emit_json({"store": store_path, **alone, "backbones": about, "embedded": [e.as_dict() for e in done]})
        return
    rows = [
        (
            e.backbone,
            e.target,
            e.n_images,
            e.dim,
            e.dtype,
            e.bad,
            e.state,
            "-" if e.images_per_second is None else f"{e.images_per_second:,.0f}",
            e.bound or "-",
        )
        for e in done
    ]
    print_table(["backbone", "target", "images", "dim", "dtype", "left out", "state", "images/s", "bound by"], rows)
