"""The files that a graph is written to, and what they say about it."""

import io
import json
import logging
import warnings
from dataclasses import asdict, replace
from typing import Any

import torch

from hta import __version__
from hta.config import ScoringConfig
from hta.evaluation.thresholds import Threshold
from hta.export.graph import INPUT, OUTPUTS, ScoreGraph
from hta.model import Model

_AXES = {0: "batch", 2: "height", 3: "width"}


def describe(model: Model, scoring: ScoringConfig, limits: Threshold) -> dict[str, Any]:
    """What a user of the graph has to know, as JSON can hold it."""
    config, by_map = model.record.config, limits.decided_by == "map"
    output, limit = OUTPUTS[2 if by_map else 0], limits.pixel_threshold if by_map else limits.threshold
    return {
        "hta_version": __version__,
        "task": model.task,
        "recipe": config.training.recipe,
        "transformations": config.model.num_transforms,
        "input": "RGB in [0, 1], any size; resized here to working_size, bicubic with a = -0.5, antialiased",
        "working_size": model.pyramid.plan.working_size,
        "decided_by": output,
        "limit": limit,
        "decision": f"an image is anomalous if {output} is above {limit!r}" + " anywhere" * by_map,
        "scoring": asdict(replace(scoring, fraction_defect=model.fraction(scoring))),
        "thresholds": asdict(limits),
    }


def onnx_file(graph: ScoreGraph, metadata: dict[str, Any]) -> bytes:
    """A graph as an ONNX model in a single file; metadata that is no text becomes JSON."""
    import onnx

    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # it warns of what it leaves as it is
    names = dict(input_names=[INPUT], output_names=OUTPUTS)
    program = torch.onnx.export(_traced(graph), dynamic_shapes=(_AXES,), verbose=False, **names)  # type: ignore[arg-type]
    model = program.model_proto  # type: ignore[union-attr]
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]  # where in the sources it came from
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}
    onnx.helper.set_model_props(model, texts)
    onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True)


def pt2_file(graph: ScoreGraph, metadata: dict[str, Any]) -> bytes:
    """A graph as `torch.export.load` reads it; the metadata is its extra file metadata.json."""
    stream = io.BytesIO()
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # of weights with their channels last
        torch.export.save(_traced(graph), stream, extra_files={"metadata.json": json.dumps(metadata)})
    return stream.getvalue()


def _traced(graph: ScoreGraph) -> torch.export.ExportedProgram:
    """A graph for any number and size of images, but not for none and no pixels."""
    axes = {axis: torch.export.Dim(name) for axis, name in _AXES.items()}
    return torch.export.export(graph, (torch.zeros(2, 3, 48, 40),), dynamic_shapes=(axes,), strict=False)
