# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Checks of settings on the command line: MONAI silently adds those that a bundle does not have.

``python -m monai.bundle run --epoch 3`` adds the id ``epoch``, which nothing reads, and trains with the default.  Every
bundle therefore begins its ``initialize`` with :func:`check_command_line`.  An id may be set if

- the configuration files of the run hold it, at any depth (``epochs``, ``train#trainer#max_epochs``),
- it is one of the names that mean the same in every bundle (``epochs`` has no effect on an inference, and is no error),
- or it names an argument of what a block builds (``method#c2s_weight``, where the ``_target_`` of ``method`` takes it).

MONAI sets all overrides before ``initialize`` runs.  It fails by itself, with a ``KeyError`` or ``ValueError`` of its
own, at an id below something that is no block (``c2s_ramp#end``, ``train#trainer#optimizers#network#lr``): there
:func:`check_command_line` is never reached, and only :func:`check_overrides` gives the sentence.

MONAI does not pass on its overrides, so this file reads them from ``sys.argv`` and the ``args_file``.  Python code that
calls ``monai.bundle.run`` or ``ConfigWorkflow`` itself can call :func:`check_overrides`.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import json
import os
import pydoc
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import monai.bundle
from monai.bundle import ConfigComponent, ConfigParser, ConfigWorkflow
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS

__all__ = ["check_command_line", "check_overrides", "takes_arguments_of"]

Builder = TypeVar("Builder", bound=Callable[..., Any])

_EVERYWHERE = ("dataset_dir", "datalist", "output_dir", "ckpt_dir", "device", "epochs", "iterations", "split")
"""Names that mean the same in every bundle; a workflow that has no use for one lets it pass."""

_MOVED = {
    "method": """
        propagation c2s_loss s2c_input s2c_loss seed_scale background_scale score_scale class_confidence
        segmentation_confidence confidence_of filter_segmentation healthy_is_background healthy_affinity
        train_mode_labels row_stochastic ready_below dilations downscale scales c2s_weight s2c_weight affinity_weight
        c2s_ramp s2c_ramp propagation_ramp norm teachers second_view equivariance cross_modal distillation ramp
        distillation_ramp plf warmup
    """,
    "classifier_def": "attention attention_stages pyramid logit cam_source pooling fusion",
    "network_def": """
        ofd_activation ofd_detach detach_seeds decoder_width topk_share pooled backbone standardize width pooling
    """,
    "to_mask": "rule gate threshold reliable_only fusion",
    "pseudo#writer": "scores label_filter",
    "optimizers#network": "weight_decay",
}
_RENAMED = {
    "use_c2s": "method#c2s_weight 0",
    "use_s2c": "method#s2c_weight 0",
    "use_affinity": "method#affinity_weight 0",
    "use_er": "method#equivariance False",
    "use_cmer": "method#cross_modal False",
    "use_kd": "method#distillation False",
    "transforms": "method#transform",
    "spatial_transform": "method#transform",
    "encoder_def": "network_def#encoder",
    "width": "network_def#encoder",
    "refine#dilations": "method#dilations",
    "refine#row_stochastic": "method#row_stochastic",
    "color_distortion": "augmentation",
    "blur": "augmentation",
    "use_ofd": "network_def#ofd",
    "use_crf": "refine @crf",
    "to_mask#crf": "refine @crf",
    "pseudo#writer#batch_size": "pseudo#inferer#slice_batch",
    "distributed_classifier": "classifier_stage#trainer#method",
    "pseudo_views": "pseudo#inferer#views",
    "pseudo_scales": "pseudo#inferer#scales",
}
"""Names of earlier versions that are set elsewhere now.  ``_MOVED`` keeps the name; if it lists a name under several
blocks, the first that the bundle has counts.  ``_RENAMED`` comes after it."""

_GONE = {
    "settings": "the run's record asks the method, the trainer and the inferer for their settings",
    "slide_network": "the slide is read with `network_def` and the weights of `ckpt_dir`",
}
"""Names of 0.1.0 that nothing takes the place of, and why."""


def _new_places(name: str) -> list[str]:
    """Give the places where a name of 0.1.0 may be set now, in any bundle."""
    moved = [f"{block}#{name}" for block, names in _MOVED.items() if name in names.split()]
    return [*moved, _RENAMED[name]] if name in _RENAMED else moved


def check_command_line() -> None:
    """Stop with one sentence if the command line of ``python -m monai.bundle run`` sets what the bundle does not have.

    Nothing happens in a process that was started in another way.

    Raises:
        SystemExit: with the sentence that says which name is wrong and what to write instead.
    """
    if Path(sys.argv[0]).parts[-3:] != ("monai", "bundle", "__main__.py") or sys.argv[1:2] == []:
        return
    if sys.argv[1] not in ("run", "run_workflow"):
        return
    given = _read_flags(sys.argv[2:])
    files = given.get("config_file")
    if files is None:
        return
    try:
        check_overrides(files, given)
    except ValueError as error:
        raise SystemExit(f"{Path(sys.argv[0]).parent.parent.name}.bundle {sys.argv[1]}: {error}") from None


def check_overrides(
    config_files: str | os.PathLike[str] | Sequence[str], overrides: Mapping[str, Any] | Iterable[str]
) -> None:
    """Check the names of overrides before they are handed to ``monai.bundle.run`` or ``ConfigWorkflow``.

    Args:
        config_files: the configuration files of the run, in their order.
        overrides: names, e.g. ``["epochs", "method#c2s_weight"]``, or names with values; arguments of
            ``monai.bundle.run`` may be among them.

    Raises:
        ValueError: a name that no configuration of the run holds and that is no argument of what a block builds, or a
            value that MONAI would ignore.

    Example:
        >>> import tempfile
        >>> config = Path(tempfile.mkdtemp()) / "train.json"
        >>> _ = config.write_text('{"epochs": 20, "optimizer": {"_target_": "torch.optim.Adam"}}')
        >>> check_overrides(config, ["epochs", "optimizer#lr"])
        >>> check_overrides(config, ["epoch"])
        Traceback (most recent call last):
        ...
        ValueError: `epoch` is no setting of this bundle: did you mean `epochs`?
    """
    files = [config_files] if isinstance(config_files, (str, os.PathLike)) else list(config_files)
    if len(files) == 1 and "," in str(files[0]) and not Path(files[0]).is_file():
        files = str(files[0]).split(",")
    values = dict(overrides) if isinstance(overrides, Mapping) else dict.fromkeys(overrides, "")
    names = {name.replace("::", "#"): value for name, value in values.items()}
    config = ConfigParser.load_config_files([str(file) for file in files])
    allowed = _arguments_of_monai() | (set(DEFAULT_MLFLOW_SETTINGS["configs"]) if "tracking" in names else set())
    for name in names:
        if name in allowed or _is_set_whole(name, names):
            continue
        problem = _problem(name, config, files) or _value_problem(name, names[name], config)
        if problem:
            raise ValueError(problem)


def _value_problem(name: str, value: Any, config: Mapping[str, Any]) -> str | None:
    """Say what MONAI would make of a value that it misreads; give None for other values."""
    if value == "None":
        return f"MONAI leaves out `{name}` when it is None: write '$None' for it."
    if name in config and isinstance(config[name], bool) and name != "resume" and value in ("true", "false"):
        return f"`{name}` takes True or False, and MONAI reads '{value}' as a word: write --{name} {value.title()}."
    return None


def takes_arguments_of(*others: Callable[..., Any] | str) -> Callable[[Builder], Builder]:
    """Mark a builder with the words that its ``**words`` takes, so that overrides are checked before anything is built.

    Args:
        others: callables whose arguments may be given, or names of words.

    Example:
        >>> @takes_arguments_of(round)
        ... def build(**words):
        ...     return round(**words)
        >>> sorted(build.taken_words)
        ['ndigits', 'number']
    """

    def mark(builder: Builder) -> Builder:
        named = {one for one in others if isinstance(one, str)}
        of_others = {name for one in others if callable(one) for name in _named(one)}
        builder.taken_words = named | of_others  # type: ignore[attr-defined]
        return builder

    return mark


def _problem(name: str, config: Mapping[str, Any], files: Sequence[str | os.PathLike[str]]) -> str | None:
    """Say in a sentence why an id may not be set; give None if it may."""
    node: Any = config
    parts = name.split("#")
    depth = 0
    while depth < len(parts):
        part = parts[depth]
        if isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, dict) and part in node:
            node = node[part]
        else:
            break
        depth += 1
    if depth == len(parts):
        return None
    above, rest = "#".join(parts[:depth]), "#".join(parts[depth:])
    if not depth:
        return _problem_at_top(name, config, files)
    words = _words_of(str(node["_target_"])) if isinstance(node, dict) and "_target_" in node else set()
    if words is None or rest in words:
        return None
    if name in _RENAMED and _problem(_RENAMED[name].split()[0], config, files) is None:
        return _is_now(name, _RENAMED[name], config)
    if isinstance(node, dict) and "_target_" in node:
        return f"`{rest}` is no argument of `{above}`, which is {node['_target_']}{_meant(rest, words, above)}"
    if isinstance(node, str) and node.startswith("@") and _problem(f"{node[1:]}#{rest}", config, files) is None:
        return f"`{above}` only refers to `{node[1:]}`: write --{node[1:]}#{rest} …."
    known = list(node) if isinstance(node, dict) else []
    return f"`{name}` is no setting of this bundle{_meant(rest, known, above)}"


def _problem_at_top(name: str, config: Mapping[str, Any], files: Sequence[str | os.PathLike[str]]) -> str | None:
    first = name.split("#")[0]
    others = _holders(first, files)
    if name in _EVERYWHERE:
        return None
    if first in _GONE:
        return f"`{first}` is gone: {_GONE[first]}."
    for place in [*_new_places(name), *_new_places(first)]:
        if place.split()[0].split("#")[0] in config and _problem(place.split()[0], config, files) is None:
            return _is_now(name, place, config)
    if others:
        return (
            f"`{name}` is a setting of {' and '.join(others)}, which this run does not read: add the file to "
            f"--config_file, or leave `{name}` out."
        )
    places = {name: name for name in (*config, *_EVERYWHERE)}
    for block, node in config.items():
        for word in (_words_of(str(node["_target_"])) or ()) if isinstance(node, dict) and "_target_" in node else ():
            places.setdefault(word, f"{block}#{word}")
    return f"`{name}` is no setting of this bundle{_meant(first, places)}"


def _is_now(name: str, place: str, config: Mapping[str, Any]) -> str:
    """Say where to set an earlier name; a block to refer to that this bundle lacks is named by its word alone."""
    before, reference, block = place.partition("@")
    if reference and block not in config:
        place = before + block
    return f"`{name}` is now `{place}`: write --{place}{'' if ' ' in place else ' …'}."


def _meant(name: str, known: Iterable[str] | Mapping[str, str], above: str = "") -> str:
    """End a sentence with the known names, or their places, that are most like a wrong one."""
    near = difflib.get_close_matches(name, list(dict.fromkeys(known)), n=2, cutoff=0.7)
    if not near:
        return ": look for its name in the table of the bundle's README."
    places = [known[word] if isinstance(known, Mapping) else f"{above}#{word}" if above else word for word in near]
    return f": did you mean {' or '.join(f'`{place}`' for place in places)}?"


def _is_set_whole(name: str, names: Mapping[str, Any]) -> bool:
    """Tell whether another override replaces the block that holds ``name``: then only the run can check it."""
    parts = name.split("#")
    above = ["#".join(parts[:depth]) for depth in range(1, len(parts))]
    return any(block in names or f"{block}#_target_" in names for block in above)


def _holders(first: str, files: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Name the other configurations of the bundle that hold a setting."""
    read = {Path(file).resolve() for file in files}
    found = []
    for path in sorted({path for file in read for path in file.parent.glob("*.json")} - read):
        if path.name == "metadata.json":
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(content, dict) and first in content:
            found.append(f"{path.parent.name}/{path.name}")
    return found


def _words_of(target: str) -> set[str] | None:
    """Give the arguments that the callable of a ``_target_`` takes, or None where they cannot be known."""
    callable_ = pydoc.locate(target)
    if not callable(callable_):
        return None
    try:
        parameters = inspect.signature(callable_).parameters.values()
    except (TypeError, ValueError):
        return None
    words = _named(callable_) | ConfigComponent.non_arg_keys
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters):
        more = getattr(callable_, "taken_words", None)
        return None if more is None else words | set(more)
    return words


@functools.cache
def _arguments_of_monai() -> set[str]:
    return _named(monai.bundle.run) | _named(monai.bundle.run_workflow) | _named(ConfigWorkflow)


def _named(function: Callable[..., Any]) -> set[str]:
    """Give the arguments of a callable that have names."""
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {name for name, one in inspect.signature(function).parameters.items() if one.kind not in variadic}


def _read_flags(words: Sequence[str]) -> dict[str, Any]:
    """Read the names that a command line sets, as fire does, with their values."""
    from fire.parser import DefaultParseValue, SeparateFlagArgs

    words, _ = SeparateFlagArgs(list(words))
    given: dict[str, Any] = {}
    for index, word in enumerate(words):
        if not (word.startswith("--") or (word[:1] == "-" and word[1:2].isalpha())):
            continue
        name, equals, value = word.lstrip("-").partition("=")
        follower = None if equals or index + 1 == len(words) else words[index + 1]
        given[name.replace("-", "_")] = value if equals else follower
    for name in ("args_file", "config_file"):
        if isinstance(given.get(name), str):
            given[name] = DefaultParseValue(given[name])
    if isinstance(given.get("args_file"), str):
        return {**ConfigParser.load_config_file(given["args_file"]), **given}
    return given
