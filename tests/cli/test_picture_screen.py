"""How the live picture looks, at the sizes of real terminals, and what its keys do."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

pytest.importorskip("textual", reason="the extra `dev`")

from textual.widgets import Static

from cli.picture.drawing import WAITS_FOR, draw
from cli.picture.frame import BackendRow, BatchRow, Frame, GpuRow, LaneRow, Notice, WorkerRow
from cli.picture.lines import heading, page, summary
from cli.picture.screen import Screen, Source
from cli.picture.shots import own_fonts
from schemas.progress import Gate
from schemas.topics import Lane

NOW = 1_800_000_000_000
GIB = 1 << 30
LONG = "triage-worker-6f9c7d5b8-x2x9q.a-very-long-name-of-a-namespace.cluster.local"


GATES = {Lane.CRITICAL: None, Lane.HIGH: Gate.WINDOW, Lane.NORMAL: Gate.NO_FREE_SLOT, Lane.LOW: Gate.TURN}


def lane(name: Lane, waiting: int) -> LaneRow:
    ended = [number % 3 for number in range(60)]
    return LaneRow(
        name, waiting, 3, 60, 60, ended, 0.21, 12.3, 4.5, {"completed": 58, "failed": 2}, 0.521, 0.533, GATES[name]
    )


def busy() -> Frame:
    """More of everything than a small terminal has rows for, and names longer than it has columns."""
    batches = [
        BatchRow(f"b-{LONG}-{number}", Lane.LOW, number + 1, number // 2, "w", LONG, number / 2, number == 2)
        for number in range(20)
    ]
    up = BackendRow("llama-1", "llamacpp", 2, 2, False, None, 3, 4, 0.9)
    down = replace(up, name=LONG, up_for=0, reason="backend_unavailable", in_flight=0)
    gpu = GpuRow(
        "GPU-1", 0, "NVIDIA H100 80GB HBM3", "gpu-host", 70 * GIB, 80 * GIB, 0.97, 71.0, "CRITICAL", 0.4, False, False
    )
    return Frame(
        at_ms=NOW,
        lanes=[lane(name, 10**number) for number, name in enumerate(Lane, 1)],
        batches=batches,
        backends=[down, up, *(replace(up, name=f"vllm-{number}", draining=True) for number in range(5))],
        workers=[WorkerRow(f"{LONG}-{number}", LONG, 4242, number == 1, 9, 3, 0.4) for number in range(8)],
        gpus=[
            gpu,
            replace(gpu, index=1, pressure=None, stale=True, age_s=17.0),
            replace(
                gpu, index=2, pressure=None, lost=True, used_bytes=None, temperature_c=None, utilization_ratio=None
            ),
        ],
        run_again=4,
        notices=[
            Notice(NOW, "worker-1 killed (SIGKILL): 12 running tasks go to its successor"),
            Notice(NOW, "it is back"),
        ],
        decisions={"fits, shortest queue": 40, "only one that can": 2},
    )


def quiet() -> Frame:
    lanes = [LaneRow(name, 0, 0, 0, 0, [0] * 60, None, None, None, {}) for name in Lane]
    return Frame(NOW, lanes, [], [], [], [], 0)


def source(frame: Frame, pressed: list[str] | None = None, *, ends: bool = False) -> Source:
    pressed = [] if pressed is None else pressed
    return Source(
        title=lambda: "triage demo  12 s left",
        frame=lambda: frame,
        notes=lambda: ["high: How long does a cold last? → About a week, 風邪は一週間くらい続きます。" * 3],
        tick=lambda: ends,
        keys={"k": ("kill worker-1", partial(pressed.append, "k")), "p": ("pause", partial(pressed.append, "p"))},
        interrupt=partial(pressed.append, "^C"),
    )


def shown(screen: Screen) -> list[str]:
    """Return the lines of the terminal."""
    return ["".join(segment.text for segment in strip) for strip in screen.screen._compositor.render_strips()]


@pytest.mark.parametrize("size", [(80, 24), (100, 30), (160, 50), (60, 12)])
@pytest.mark.parametrize("frame", [busy(), quiet()], ids=["busy", "quiet"])
async def test_the_picture_fills_the_terminal_and_is_never_wider_or_higher(frame: Frame, size: tuple[int, int]) -> None:
    width, height = size
    lines = draw(frame, width=width, height=height - 1, title="triage top " + LONG * 3, notes=["note " * 99])
    assert max(line.cell_len for line in lines) <= width
    assert height - 1 == len(lines)
    screen = Screen(source(frame))
    async with screen.run_test(size=size) as pilot:
        await pilot.pause()
        rows = shown(screen)
        static = screen.query_one(Static)
        assert (height, height - 1, width) == (len(rows), static.size.height, static.virtual_size.width)
        assert [name.value for name in Lane] == [row.split()[0] for row in rows[2:6]]
        assert "quit" in rows[-1]


@pytest.mark.parametrize("size", [(100, 44), (160, 50)])
async def test_the_picture_says_in_words_what_matters(size: tuple[int, int]) -> None:
    screen = Screen(source(busy()))
    async with screen.run_test(size=size) as pilot:
        await pilot.pause()
        said = "\n".join(shown(screen))
    told = [
        *("52/53%", "waits for    high company · normal a free slot · low its turn among lanes"),
        "chosen as    fits, shortest queue 40 · only one that can 2",
        *("11110 waiting", "4 run again", "critical", "0.21 s", "232 completed", "8 failed"),
        *("DOWN: backend_unavailable", "draining", "worker gone", "70.0/80 GiB", "CRITICAL", "stale 17 s", "LOST"),
        "worker-1 killed (SIGKILL): 12 running tasks go to its successor",
        "How long does a cold last?",
        *("k kill worker-1", "q quit"),
    ]
    assert [] == [each for each in told if each not in said]


async def test_a_small_terminal_shows_every_section_and_says_what_it_leaves_out() -> None:
    screen = Screen(source(busy()))
    async with screen.run_test(size=(80, 24)) as pilot:
        await pilot.pause()
        rows = shown(screen)
        heads = [row.split()[0] for row in rows if row.split()[:1] and row.split()[0].isupper()]
        assert ["LANE", "BATCH", "BACKEND", "WORKER", "GPU"] == heads
        assert any(row.strip() == "and 8 more" or row.strip() == "and 7 more" for row in rows)


def test_a_long_name_loses_its_middle() -> None:
    page_rows = page(busy(), width=100, title="triage top").splitlines()
    worker = next(row for row in page_rows if row.startswith("triage-worker") and "serving" in row)
    assert worker.split()[0].endswith("-0")
    assert "…" in worker.split()[0]


def test_without_data_each_section_says_what_it_waits_for() -> None:
    said = page(quiet(), width=80, title="triage top")
    for each in ("`triage worker` starts one", "`triage gpu-publisher` sends them", "none in the last minute"):
        assert each in said


async def test_keys_do_what_the_footer_says_and_q_ends_it() -> None:
    pressed: list[str] = []
    screen = Screen(source(busy(), pressed))
    async with screen.run_test(size=(80, 24)) as pilot:
        await pilot.press("k", "p", "x", "k")
        assert ["k", "p", "k"] == pressed
        assert screen.is_running
        await pilot.press("q")
    assert not screen.is_running
    assert ["k", "p", "k"] == pressed


async def test_ctrl_c_interrupts_and_ends_it() -> None:
    pressed: list[str] = []
    screen = Screen(source(busy(), pressed))
    async with screen.run_test(size=(80, 24)) as pilot:
        await pilot.press("ctrl+c")
    assert (["^C"], False) == (pressed, screen.is_running)


async def test_it_ends_when_its_source_says_so() -> None:
    screen = Screen(source(quiet(), ends=True))
    await screen.run_async(headless=True)
    assert not screen.is_running


def test_a_line_for_a_log_stands_under_its_heading() -> None:
    told = summary(busy())
    assert len(heading()) == len(told)
    assert ["10+3", "60", "52%", "100+3", "60", "52%"] == told.split()[1:7]
    assert ["8", "6/7", "3"] == told.split()[-3:]


def test_every_gate_has_words() -> None:
    assert set(Gate) == set(WAITS_FOR)


def test_a_picture_file_loads_nothing_from_elsewhere() -> None:
    svg = '<style>@font-face { font-family: "Fira"; src: url("https://a.example/f.woff2"); }\n.a { font-family: Fira; }</style>'
    assert "https" not in own_fonts(svg)
    assert "@font-face" not in own_fonts(svg)
    assert "monospace;" in own_fonts(svg)
