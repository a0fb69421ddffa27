"""Metrics by slow loops, written from their definitions alone."""

import numpy as np
from sklearn.metrics import auc


def auroc_by_pairs(labels, scores):
    normal, anomalous = (np.asarray(scores)[np.asarray(labels) == label] for label in (0, 1))
    return np.mean([(a > n) + (a == n) / 2 for a in anomalous for n in normal])


def f1_by_loop(labels, scores):
    best = (-1.0, None)
    for threshold in sorted(set(scores), reverse=True):
        alarm = scores >= threshold
        tp, fp, fn = np.sum(alarm & (labels == 1)), np.sum(alarm & (labels == 0)), np.sum(~alarm & (labels == 1))
        best = max(best, (2 * tp / (2 * tp + fp + fn), threshold), key=lambda pair: pair[0])
    return best


def regions_by_flood(mask):
    left, regions = {tuple(place) for place in np.argwhere(mask)}, []
    while left:
        stack, region = [left.pop()], []
        while stack:
            y, x = stack.pop()
            region.append((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            stack.extend(near)
        regions.append(tuple(np.array(region).T))
    return regions


def aupro_by_loop(masks, maps, limit):
    values = sorted({value for anomaly_map in maps for value in anomaly_map.ravel()}, reverse=True)
    curve = [(0.0, 0.0)]
    for threshold in values:
        overlaps = [np.mean(m[r] >= threshold) for k, m in zip(masks, maps, strict=True) for r in regions_by_flood(k)]
        normal = np.concatenate([m[~k] for k, m in zip(masks, maps, strict=True)])
        curve.append((np.mean(normal >= threshold), np.mean(overlaps)))
    rates, overlaps = np.array(curve).T
    xs = [*rates[rates < limit], limit]
    return auc(xs, [*overlaps[rates < limit], np.interp(limit, rates, overlaps)]) / limit
