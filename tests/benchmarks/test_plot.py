"""The picture can be read, whatever the figures are. For those who have what draws it."""

from dataclasses import replace
from itertools import combinations

import pytest

from tests.benchmarks.__main__ import RESULTS
from tests.benchmarks.contenders.table import named
from tests.benchmarks.excerpt import GROUPS, present
from tests.benchmarks.report import from_json
from tests.benchmarks.rounds import Sample

pytest.importorskip("matplotlib", reason="the extra `benchmark` is not installed")


def times(sample: Sample, factor: float) -> Sample:
    """Ours are that much faster, and that much slower to arrive."""
    if not sample.contender.startswith("primeflowd"):
        return sample
    p50, p99 = sample.arrive_p50 * factor, sample.arrive_p99 * factor
    return replace(sample, rate=sample.rate * factor, arrive_p50=p50, arrive_p99=p99)


@pytest.mark.parametrize("factor", [1.0, 0.01, 30.0])
def test_no_text_is_cut_off_or_on_another(factor: float) -> None:
    from matplotlib.text import Text

    from tests.benchmarks.plot import picture

    found, _ = from_json((RESULTS / "results.json").read_text("utf-8"), named())
    rounds = [[times(sample, factor) for sample in each] for each in found.rounds]
    canvas = picture(replace(found, rounds=rounds))
    canvas.draw_without_rendering()
    # Scales have labels beyond their ends, too, which are not drawn.
    scales = {id(one) for axes in canvas.axes for one in axes.xaxis.findobj(Text)}
    scales -= {id(axes.xaxis.label) for axes in canvas.axes}
    texts = [one for one in canvas.findobj(Text) if id(one) not in scales]
    drawn = [one for one in texts if one.get_text() and one.get_visible()]
    boxes = [(one.get_text(), one.get_window_extent()) for one in drawn]
    # A row has a name and three figures; two titles of groups, four of axes, the legend.
    rows = sum(len(present(found, group)) for group in GROUPS)
    assert len(boxes) == rows * 4 + 2 + 4 + 4
    edge = canvas.bbox
    for text, box in boxes:
        assert 0 <= box.x0 < box.x1 <= edge.x1, text
        assert 0 <= box.y0 < box.y1 <= edge.y1, text
    for (text, box), (other, second) in combinations(boxes, 2):
        assert not box.overlaps(second), (text, other)
