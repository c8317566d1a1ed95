"""Expressions of PromQL over the metrics of `leanrec serve`, and the series that the recording rules write.

Every series has the labels `study` and `offer`, which the pods' labels of these names become.
"""

from __future__ import annotations

from collections.abc import Sequence

from search.plan.manifests.timetable import Calendar, Stretch

# Recorded series, named LEVEL:METRIC:OPERATION as Prometheus recommends.
RATE = "study:leanrec_requests:rate1m"
RATE_BY_STATUS = "study_status:leanrec_requests:rate1m"
LATENCY = "study:leanrec_request_seconds:quantile5m"
REFUSED = "study:leanrec_refusals:share5m"
QUEUE = "study_offer:leanrec_queue_length:avg"
IN_FLIGHT = "study_offer:leanrec_in_flight:avg"
POSITION = "study:leanrec_plan:seconds"
CAPACITY = "study:leanrec_plan:capacity_rps"
PLANNED_LOSS = "study:leanrec_plan:loss"
PLANNED = "study_offer:leanrec_machines:planned"
ACTUAL = "study_offer:leanrec_machines:actual"
# Matcher of the requests that are load: a model need not answer those that it cannot take.
LOAD = 'status!~"4.."'


def of(series: str, **labels: str) -> str:
    """Return the selector of a series with labels, whose values need no escape."""
    matchers = ",".join(f'{name}="{value}"' for name, value in labels.items())
    return f"{series}{{{matchers}}}"


def request_rate(study: str, by: str = "") -> str:
    """Requests per second that arrive, refused ones too; those that are a client's fault only by their label."""
    if by:
        return f"sum by ({by}) (rate({of('leanrec_requests_total', study=study)}[1m]))"
    return f'sum(rate(leanrec_requests_total{{study="{study}",{LOAD}}}[1m]))'


def quantile(share: float, histogram: str, study: str) -> str:
    """Quantile of a histogram, linear within its buckets."""
    return f"histogram_quantile({share:g}, sum by (le) (rate({of(f'{histogram}_bucket', study=study)}[5m])))"


def refused_share(study: str) -> str:
    """Share of the requests that are refused; nothing where none arrives."""
    refused, all_of = (of(name, study=study) for name in ("leanrec_refusals_total", "leanrec_requests_total"))
    return f"(sum(rate({refused}[5m])) or vector(0)) / (sum(rate({all_of}[5m])) > 0)"


def position(calendar: Calendar) -> str:
    """Seconds from the start of a plan, which returns to 0 each week if it is a weekly one."""
    since = f"time() - {_number(calendar.start_s)}"
    return f"vector(({since}) % {_number(calendar.seconds)})" if calendar.weekly else f"vector({since})"


def over_time(parts: Sequence[Stretch], calendar: Calendar, study: str) -> str:
    """Value of a quantity of a plan now; outside of the dates of a plan, the last one."""
    if len(parts) == 1:
        return f"vector({_number(parts[0].value)})"
    at = of(POSITION, study=study)
    conditions = [f"{at} >= {_number(part.start_s)} < {_number(part.end_s)}" for part in parts]
    if not calendar.weekly:
        conditions[-1] = f"{at} >= {_number(parts[-1].start_s)} or {at} < 0"
    values = [f"vector({_number(part.value)})" for part in parts]
    return "\nor ".join(f"({value} and on () ({when}))" for value, when in zip(values, conditions, strict=True))


def reactive_machines(study: str, offer: str) -> str:
    """Machines that the rate of all requests takes, each at the capacity that it has among those of the plan now.

    0 while the plan has another offer serve; nothing without the rules.
    """
    each = f"{of(PLANNED, study=study, offer=offer)} / on () {of(CAPACITY, study=study)}"
    return f"({request_rate(study)} or vector(0)) * on () ({each})"


def _number(value: float) -> str:
    return f"{value:.15g}"
