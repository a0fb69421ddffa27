"""What a results page says in words, as HTML; every name and every reason goes through `escaped`."""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import PurePath
from typing import Any

from hta.config import ModelConfig
from hta.evaluation.overlays import ColourScale
from hta.evaluation.scores import score_text
from hta.files import printable

METRIC_NAMES = {
    "image_auroc": "image AUROC",
    "map_auroc": "image AUROC of the maps' maxima",
    "average_precision": "average precision",
    "f1_max": "largest F1",
    "pixel_auroc": "pixel AUROC",
    "pixel_f1_max": "largest pixel F1",
    "aupro": "AUPRO",
}
"""What each metric of metrics.json is called, in the order in which they are said."""

NO_OVERLAYS = "<p>The images were scored without maps, so there are no overlays.</p>"

_LISTED = 10  # names that a list shows before it only counts them
_TASKS = {"defect": "defects: few places decide", "class": "another class: the whole image decides"}


def escaped(text: Any) -> str:
    """Anything as HTML text."""
    return escape(printable(str(text)))


def threshold_of(document: dict[str, Any]) -> float | None:
    """The score above which an image is rejected; None if there is none, or the maps decide."""
    decision = _decision_of(document)
    return None if _by_map(decision) else decision.get("threshold")


def decided_by(document: dict[str, Any]) -> str:
    """What images are rejected by: "map" or "score"."""
    return "map" if _by_map(_decision_of(document)) else "score"


def _by_map(decision: dict[str, Any]) -> bool:
    """Whether images are rejected by their maps."""
    return decision.get("decided_by") == "map"


def _limit(decision: dict[str, Any]) -> float | None:
    """What an image is held against; None if nothing is decided."""
    return decision.get("pixel_threshold" if _by_map(decision) else "threshold")


def _decision_of(document: dict[str, Any]) -> dict[str, Any]:
    return document.get("decision") or {}


def title(document: dict[str, Any]) -> str:
    """What the page is called: the model and what was scored."""
    model, scored = PurePath(document["model"]["path"]), _scored(document)
    return escaped(f"{model.name}: results on {scored if document.get('dataset') else PurePath(scored).name or scored}")


def _scored(document: dict[str, Any]) -> str:
    """Where the images come from: a folder, or a data set and its normal class."""
    dataset = document.get("dataset")
    return f"{dataset['name']}, normal class {dataset['pos_class']}" if dataset else document["test_dir"]


# --- parts of the page ------------------------------------------------------------------------------------------------


def summary(document: dict[str, Any]) -> str:
    """Figures first, then warnings, the decision and the metrics."""
    sections = _section("Decision", _decision(document)) + _section("Metrics", _metrics(document["metrics"]))
    return f'{_tiles(document)}{_warnings(document)}<div class="columns">{sections}</div>'


def origin(document: dict[str, Any]) -> str:
    """What was trained, and what was scored."""
    model, test = _definitions(_model_facts(document["model"])), _definitions(_test_facts(document))
    return _section("Model", model) + _section("Test", test)


def _tiles(document: dict[str, Any]) -> str:
    """The figures that a reader looks for first."""
    decision, metrics = _decision_of(document), document["metrics"]
    auroc, counts = metrics["image_auroc"], metrics.get("images")
    labels = f"{counts['normal']:,} normal, {counts['anomalous']:,} anomalous" if counts else "without labels"
    tiles = [
        ("images", f"{document['images']:,}", labels),
        ("image AUROC", _number(auroc["value"]), _interval_note(auroc) or auroc.get("reason", "")),
    ]
    if _limit(decision) is not None:
        what = "map anywhere above" if _by_map(decision) else "score above"
        tiles.append(("rejected", f"{decision['rejected']:,}", what, score_text(_limit(decision))))
        tiles.append(("false alarms", *_rate(decision, "false_positive_rate"), "normal images rejected"))
        tiles.append(("recall", *_rate(decision, "recall"), "anomalous images rejected"))
    else:
        tiles.append(("threshold", "none", decision.get("reason") or "no decisions"))
    return '<dl class="tiles">{}</dl>'.format(
        "".join(
            f'<div><dt>{escaped(name)}</dt><dd class="value">{escaped(value)}</dd>'
            f"{''.join(f'<dd>{escaped(note)}</dd>' for note in notes)}</div>"
            for name, value, *notes in tiles
        )
    )


def _rate(decision: dict[str, Any], key: str) -> tuple[str, str]:
    """A measured rate and its interval, or that there is none."""
    rate = decision.get(key) or {}
    if rate.get("value") is None:
        return "n/a", "no such labels"
    low, high = rate["interval_95"]
    return _percent(rate["value"]), f"95 % interval {_percent(low)} to {_percent(high)}"


def _warnings(document: dict[str, Any]) -> str:
    if not document["warnings"]:
        return ""
    return f'<section class="warnings"><h2>Warnings</h2>{_list(document["warnings"])}</section>'


def _model_facts(model: dict[str, Any]) -> list[tuple[str, str]]:
    network, training = model["config"]["model"], model["config"]["training"]
    return [
        ("path", escaped(model["path"])),
        ("training images", _list(model["training_images"], most=_LISTED)),
        ("their size", _size(model["image_size"])),
        ("task", escaped(_TASKS.get(network["task"], network["task"]))),
        ("scales", ", ".join(_size(size) for size in model["scales"])),
        ("transformations", escaped(network["num_transforms"])),
        ("iterations a scale", f"{training['niter']:,}"),
        ("seed", escaped(training["manualSeed"])),
        ("trained by", escaped(f"hta {model['hta_version']}")),
    ]


def _test_facts(document: dict[str, Any]) -> list[tuple[str, str]]:
    scoring, seconds, machine = document["scoring"], document["seconds"], document["machine"]
    facts = [("images", f"{document['images']:,} of {escaped(_scored(document))}")]
    if document["labels_csv"]:
        facts.append(("labels", escaped(document["labels_csv"])))
    if document.get("good_images"):
        good = document["good_images"]
        name = "pixel threshold made of" if _decision_of(document).get("source") == "given" else "threshold made of"
        facts.append((name, f"{good['images']:,} good images of {escaped(good['dir'])}"))
    if document["skipped"]:
        reasons = list(document["skipped"].values())
        facts.append((f"left out ({len(reasons):,})", _list(reasons, most=_LISTED)))
    facts += [
        ("patches that vote", f"the worst {_percent(scoring['fraction_defect'])}"),
        ("scales brought together by", escaped(scoring["aggregate"])),
        ("time", f"{seconds['total']:,.1f} s, {seconds['per_image']:.3f} s an image"),
        ("machine", escaped(f"{machine['device']}, {machine['dtype']}, {machine['threads']} thread(s)")),
        ("scored by", escaped(f"hta {document['versions']['hta']}, torch {document['versions']['torch']}")),
    ]
    return facts


def _decision(document: dict[str, Any]) -> str:
    decision = _decision_of(document)
    if _limit(decision) is None:
        reason = decision.get("reason")
        return f"<p>No threshold, so no image is rejected or passed{f': {escaped(reason)}' if reason else ''}.</p>"
    what = "map is anywhere" if _by_map(decision) else "score is"
    words = [f"An image is rejected if its anomaly {what} above {score_text(_limit(decision))}, otherwise it passes."]
    if decision.get("target_fpr") is not None:
        words.append(_promise(document, decision["target_fpr"]))
    elif decision.get("source") == "given":
        words.append("The threshold was given; nothing is promised about false alarms.")
    if decision.get("pixel_threshold") is not None and not _by_map(decision):
        words.append(f"A pixel of a map counts as anomalous above {score_text(decision['pixel_threshold'])}.")
    if (decision.get("pixel_false_alarms") or {}).get("value") is not None and not _by_map(decision):
        part, interval = _rate(decision, "pixel_false_alarms")
        words.append(f"Of the normal images, {part} have such a pixel anywhere ({interval}).")
    return f"<p>{escaped(' '.join(words))}</p>{_confusion(decision)}"


def _promise(document: dict[str, Any], target: float) -> str:
    """What the threshold was made of, and how many false alarms that promises."""
    good = document.get("good_images")
    if good:
        return (
            f"The threshold was made of {good['images']:,} good images that the model was not trained on, so that at "
            f"most about {_percent(target)} of further ones like them are rejected: false alarms."
        )
    return (
        "The threshold was calibrated on views of the training images so that about "
        f"{_percent(target)} of normal images are rejected: false alarms."
    )


def _confusion(decision: dict[str, Any]) -> str:
    """The decisions against the labels."""
    counts = decision.get("confusion")
    if counts is None:
        return "<p>How often it errs was not measured: the images have no labels.</p>"
    rows = [
        ("normal", counts["true_negatives"], counts["false_positives"], _rate(decision, "false_positive_rate")),
        ("anomalous", counts["false_negatives"], counts["true_positives"], _rate(decision, "recall")),
    ]
    return _table(
        ("label", "passed", "rejected", "part rejected"),
        [(name, f"{passed:,}", f"{rejected:,}", part) for name, passed, rejected, (part, _) in rows],
    )


def _metrics(metrics: dict[str, Any]) -> str:
    named = {name: metrics[key] for key, name in METRIC_NAMES.items()}
    named |= {f"image AUROC, {kind}": metric for kind, metric in metrics.get("auroc_by_kind", {}).items()}
    rows = [(name, _number(metric["value"]), _metric_note(metric)) for name, metric in named.items()]
    return _table(("metric", "value", "note"), rows)


def _metric_note(metric: dict[str, Any]) -> str:
    if metric["value"] is None:
        return f"not defined: {metric['reason']}"
    notes = [_interval_note(metric)]
    if "threshold" in metric:
        notes.append(f"at threshold {score_text(metric['threshold'])}, chosen on these images")
    notes += [f"false positive rate up to {metric['max_fpr']:g}"] if "max_fpr" in metric else []
    return "; ".join(filter(None, notes))


def _interval_note(metric: dict[str, Any]) -> str:
    interval = metric.get("interval_95") or {}
    return "" if interval.get("low") is None else f"95 % interval {interval['low']:.3f} to {interval['high']:.3f}"


def reach(model: dict[str, Any]) -> str:
    """Which sizes of defects the model can see.

    The finest scale shows the image smaller than it is. What covers less than two of its pixels is lost in the resize.
    """
    network = model["config"]["model"]
    coarsest, finest = (min(model["scales"][n]) for n in (0, -1))
    covered = min(model["image_size"]) / finest
    field = ModelConfig(num_layer=network["num_layer"], ker_size=network["ker_size"]).receptive_field
    return (
        f"<p>At the finest scale the image has {_size(model['scales'][-1])}: one pixel there covers about "
        f"<strong>{_square(f'{covered:.1f}')}</strong> of an image of {_size(model['image_size'])}. A defect smaller "
        f"than about two such pixels, <strong>{2 * covered:.1f} px</strong> of the image, cannot be seen.</p>"
        f"<p>Each vote looks at {_square(field)} of its scale: {field * covered:.0f} px of the image at the finest "
        f"one, {field * min(model['image_size']) / coarsest:.0f} px at the coarsest. "
        "For test images of another size these lengths change in proportion.</p>"
    )


def colours(scale: ColourScale) -> str:
    """The colour scale in words."""
    return (
        "<p>One colour scale for all images of this run, drawn here over mid-grey. The map goes from 0 to 1, higher is "
        "more anomalous. Where it is at or below "
        f"{scale.low:.3f} the image looks like itself; from there it turns purple, red, orange and, at "
        f"{scale.high:.3f} and above, pale yellow. A cyan line is the outline of the mask that came with the image.</p>"
    )


# --- elements ---------------------------------------------------------------------------------------------------------


def figure(content: str, caption: str) -> str:
    """A drawing or a text with a caption above it."""
    return f"<figure><figcaption>{escaped(caption)}</figcaption>{content}</figure>"


def _section(heading: str, content: str) -> str:
    return f"<section><h2>{escaped(heading)}</h2>{content}</section>"


def _definitions(facts: Iterable[tuple[str, str]]) -> str:
    return f"<dl>{''.join(f'<div><dt>{escaped(name)}</dt><dd>{value}</dd></div>' for name, value in facts)}</dl>"


def _list(texts: Sequence[str], most: int | None = None) -> str:
    entries = [escaped(text) for text in texts[:most]]
    if len(texts) > len(entries):
        entries.append(f"and {len(texts) - len(entries):,} more")
    return f"<ul>{''.join(f'<li>{entry}</li>' for entry in entries)}</ul>"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escaped(name)}</th>' for name in header)
    body = "".join(
        f'<tr><th scope="row">{escaped(name)}</th>{"".join(f"<td>{escaped(cell)}</td>" for cell in cells)}</tr>'
        for name, *cells in rows
    )
    return f'<table class="small"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _size(size: Sequence[int]) -> str:
    height, width = size
    return f"{width}&nbsp;&times;&nbsp;{height}&nbsp;px"


def _square(side: object) -> str:
    return f"{side}&nbsp;&times;&nbsp;{side}&nbsp;px"


def _percent(rate: float) -> str:
    value = 100 * rate
    return f"{value:.2g} %" if 0 < value < 1 else f"{value:.1f} %".replace(".0 %", " %")


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"
