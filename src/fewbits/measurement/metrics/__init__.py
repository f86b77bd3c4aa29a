"""The catalog of metrics: one score per example, so that two models can be compared example by example."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from fewbits._base.catalog import Catalog
from fewbits._base.errors import UsageError
from fewbits.measurement.metrics.base import FunctionMetric, Metric

METRICS: Catalog[Metric] = Catalog(__name__, "METRIC", kind="metric")


def resolve_metric(name: str | None, *, labelled: bool) -> Metric:
    """Returns the metric of a name, of ``module:function``, or the default: top-1 with labels, else agreement.

    A module is looked for beside the working directory too. Its code runs: a metric is the user's own program.

    Raises: UsageError for an unknown name, a module that does not import, or labels that are needed and missing.
    """
    if name is None:
        return METRICS["top-1" if labelled else "agreement"]
    if ":" in name:
        return FunctionMetric.of(_function(name), name=name)
    metric = METRICS[name]
    if metric.needs_labels and not labelled:
        raise UsageError(
            f"metric {name!r} needs labels, the data have none; add an array 'labels', or name it with --labels-key",
            slug="metric-needs-labels",
        )
    return metric


def _function(name: str) -> object:
    module_name, _, attribute = name.partition(":")
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # a stranger's module may raise anything when it is imported
        raise UsageError(
            f"cannot load metric {name!r}: {type(error).__name__}: {error}; write MODULE:FUNCTION, the module "
            "importable from here",
            slug="metric-not-found",
        ) from error
    finally:
        if added:
            sys.path.remove(here)
