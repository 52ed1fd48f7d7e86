"""Every explorer redraws for every control, and shows the numbers that kdlib computes."""

import asyncio
import base64
import html
import io
import math
import re

import ipywidgets as ipw
import matplotlib.image
import numpy as np
import pytest
import torch

from kdlib.course import plots, widgets
from kdlib.course.figures import png
from kdlib.language.plan.plan import plan
from kdlib.losses.divergences import DIVERGENCES, OF_MIXTURE
from kdlib.losses.kd import kd_loss, soft_target_loss, soften

CLASSES = ["8", "3", "5"]
LOGITS = torch.tensor([4.0, 2.0, 0.0])
STUDENT = torch.tensor([0.5, 1.0, -1.0])
X = torch.linspace(-6, 6, 121)
BUMPS = torch.softmax(torch.logaddexp(-2 * (X - 2) ** 2, -2 * (X + 2) ** 2), dim=-1)
MANY = torch.tensor([[4.0, 2.0, 0.0], [0.0, 5.0, 1.0], [1.0, 1.0, 3.0]])
PICTURES = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([2, 0, 1])

EXPLORERS = {
    "temperature": lambda: widgets.temperature_explorer(LOGITS, CLASSES),
    "soft label": lambda: widgets.soft_label_explorer(PICTURES, MANY, CLASSES, LABELS),
    "loss": lambda: widgets.loss_explorer(LOGITS, STUDENT, 0, CLASSES),
    "divergence": lambda: widgets.divergence_explorer(X, BUMPS),
    "plan": lambda: widgets.plan_explorer(),
}


def controls(box: ipw.VBox) -> dict[str, ipw.ValueWidget]:
    return {control.description: control for control in box.children[:-1]}


def alt(box: ipw.VBox) -> str:
    """The alt text of the picture, as a reader hears it."""
    (text,) = re.findall(r'^<img alt="([^"]*)"', box.children[-1].value)
    return html.unescape(text)


def picture(box: ipw.VBox) -> bytes:
    (data,) = re.findall(r'src="data:image/png;base64,([^"]*)"', box.children[-1].value)
    return base64.b64decode(data)


def places(control: ipw.ValueWidget) -> list[float]:
    """Both ends and some values between, as the slider sends them; of a list to choose from all."""
    if isinstance(control, ipw.Dropdown):
        return list(control.options)
    if isinstance(control, ipw.FloatLogSlider):
        return [control.base**power for power in (control.min, 0, 1, 3, control.max)]
    middle = (control.min + control.max) / 2
    return [control.min, type(control.value)(middle), control.max]


# --- all explorers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPLORERS)
def test_the_explorer_opens_with_controls_above_a_described_picture(name):
    box = EXPLORERS[name]()
    assert len(box.children) >= 3
    assert isinstance(box.children[-1], ipw.HTML)
    assert picture(box).startswith(b"\x89PNG")
    assert len(alt(box)) >= 20
    for control in box.children[:-1]:
        assert control.description, "a slider without a name says nothing"
    assert len(controls(box)) == len(box.children) - 1, "names are all different"


@pytest.mark.parametrize("name", EXPLORERS)
def test_every_control_changes_the_picture_and_its_alt_text_over_its_whole_range(name):
    box = EXPLORERS[name]()
    for control in controls(box).values():
        start = control.value
        seen = {alt(box): picture(box)}
        for place in places(control):
            control.value = place
            wanted = place if isinstance(place, str) else pytest.approx(place)
            assert control.value == wanted, "the slider reaches this value"
            seen[alt(box)] = picture(box)
            assert not re.search(r"\bnan\b|\binf\b", alt(box))
        distinct = {*places(control), start}
        assert len(seen) == len(distinct), f"{control.description}: one alt text for each value"
        assert len(set(seen.values())) == len(distinct), f"{control.description}: one picture for each value"
        control.value = start


def nearest_step(slider: ipw.ValueWidget) -> float:
    """Where the page puts the slider when it is first shown, and what it then sends back."""
    log = isinstance(slider, ipw.FloatLogSlider)
    place = math.log(slider.value, slider.base) if log else slider.value
    place = slider.min + round((place - slider.min) / slider.step) * slider.step
    return slider.base**place if log else place


@pytest.mark.parametrize("name", EXPLORERS)
def test_sliders_start_on_one_of_their_steps(name):
    """Else the page would move them, and the picture with them, before the reader does."""
    for slider in controls(EXPLORERS[name]()).values():
        if not isinstance(slider, ipw.Dropdown):
            assert slider.value == pytest.approx(nearest_step(slider), abs=1e-9)


@pytest.mark.parametrize("name", EXPLORERS)
def test_going_back_gives_the_first_picture_back(name):
    box = EXPLORERS[name]()
    before = box.children[-1].value
    for control in controls(box).values():
        start = control.value
        control.value = places(control)[0] if places(control)[0] != start else places(control)[-1]
        assert box.children[-1].value != before
        control.value = start
        assert box.children[-1].value == before


@pytest.mark.parametrize("name", EXPLORERS)
def test_explorers_work_inside_a_running_event_loop_as_in_a_kernel(name):
    async def use() -> str:
        box = EXPLORERS[name]()
        control = box.children[0]
        control.value = places(control)[-1]
        await asyncio.sleep(0)
        return alt(box)

    assert len(asyncio.run(use())) >= 20


@pytest.mark.parametrize("name", EXPLORERS)
def test_without_a_kernel_a_strip_of_states_is_seen(name):
    box = EXPLORERS[name]()
    before = {control.description: control.value for control in controls(box).values()}
    data, about = box._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    strip = matplotlib.image.imread(io.BytesIO(base64.b64decode(data["image/png"])))
    one = matplotlib.image.imread(io.BytesIO(picture(box)))
    assert strip.shape[0] >= 2 * one.shape[0], "more than one state"
    assert strip.shape[1] == one.shape[1]
    assert data["text/plain"] == about["image/png"]["alt"]
    assert before == {control.description: control.value for control in controls(box).values()}


def test_the_strip_holds_each_state_below_its_name():
    box = widgets.explorer(bars, [{"height": 0.25}, {"height": 0.75, "second": 4}],
                           height=ipw.FloatSlider(0.5, min=0, max=1, description="height h"),
                           second=ipw.IntSlider(3, description="dog"))  # fmt: skip
    drawn, alt = box.strip()
    assert alt.endswith(
        f"height h = 0.25: {bars(0.25, 3).get_label()} height h = 0.75, dog = 4: {bars(0.75, 4).get_label()}"
    )
    strip = matplotlib.image.imread(io.BytesIO(drawn))
    for place, figure in ((0, bars(0.25, 3)), (1, bars(0.75, 4))):
        wanted = matplotlib.image.imread(io.BytesIO(png(figure)))[..., :3]
        bottom = (place + 1) * strip.shape[0] // 2
        assert np.array_equal(strip[bottom - wanted.shape[0] : bottom, :, :3], wanted)


# --- explorer ----------------------------------------------------------------------------------------


def bars(height: float, second: int = 0):
    return plots.label_bars({"p": [height, 1 - height]}, ["cat", f"dog {second}"])


def test_explorer_draws_with_the_value_of_every_control_by_its_name():
    seen = []

    def draw(**values):
        seen.append(values)
        return bars(**values)

    height, second = ipw.FloatSlider(0.25, min=0, max=1), ipw.IntSlider(3)
    box = widgets.explorer(draw, height=height, second=second)
    assert box.children[:-1] == (height, second)
    assert alt(box) == bars(0.25, 3).get_label()
    assert picture(box) == png(bars(0.25, 3))
    height.value = 0.75
    assert alt(box) == bars(0.75, 3).get_label()
    second.value = 4
    assert alt(box) == bars(0.75, 4).get_label()
    assert seen == [
        {"height": 0.25, "second": 3}, {"height": 0.75, "second": 3}, {"height": 0.75, "second": 4},
    ]


def test_explorer_takes_other_controls_than_sliders():
    choice = ipw.Dropdown(options={"little": 0.1, "much": 0.9})
    box = widgets.explorer(bars, height=choice)
    assert "dog 0 0.90" in alt(box)
    choice.label = "much"
    assert "cat 0.90" in alt(box)


def test_an_error_while_drawing_is_not_swallowed():
    def draw(height):
        if height > 0.5:
            raise RuntimeError("no picture above 0.5")
        return bars(height)

    height = ipw.FloatSlider(0.25, min=0, max=1)
    box = widgets.explorer(draw, height=height)
    before = box.children[-1].value
    with pytest.raises(RuntimeError, match=r"no picture above 0\.5"):
        height.value = 0.75
    assert box.children[-1].value == before
    height.value = 0.3
    assert "cat 0.30" in alt(box)


def test_an_error_in_the_first_picture_is_raised_at_once():
    with pytest.raises(ZeroDivisionError):
        widgets.explorer(lambda x: bars(1 / x), x=ipw.IntSlider(0))


# --- temperature -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["temperature", "soft label", "loss"])
@pytest.mark.parametrize("wanted", [1, 2, 4, 8])
def test_the_temperature_slider_reaches_powers_of_two_exactly(name, wanted):
    """The page moves the exponent in steps from its lower end and sends base ** exponent."""
    box = EXPLORERS[name]()
    slider = controls(box)["temperature T"]
    steps = (math.log2(wanted) - slider.min) / slider.step
    assert steps == round(steps)
    sent = slider.base ** (slider.min + round(steps) * slider.step)
    slider.value = sent
    assert slider.value == wanted
    if name != "loss":  # its alt text gives the loss, not T
        assert re.search(rf"T = {wanted}\b", alt(box))
    assert format(slider.value, slider.readout_format) == str(wanted)


def test_temperature_explorer_shows_soften_and_its_entropy():
    box = EXPLORERS["temperature"]()
    sliders = controls(box)
    assert list(sliders) == ["temperature T", "z, 8", "z, 3", "z, 5"]
    assert [sliders[f"z, {name}"].value for name in CLASSES] == LOGITS.tolist()
    for temperature in (0.125, 1.0, 4.0, 128.0):
        for z in (-10.0, 2.0, 6.5):
            sliders["temperature T"].value = temperature
            sliders["z, 3"].value = z
            p = soften(torch.tensor([4.0, z, 0.0]), temperature)
            entropy = torch.special.entr(p).sum()
            assert alt(box).startswith(f"T = {temperature:.3g}: entropy {entropy:.3f} of at most 1.099 nats")
            largest = p.argmax()
            assert f" T = {temperature:.3g}: {CLASSES[largest]} {p[largest]:.2f}" in alt(box)
            order = "3 > 8 > 5" if z > 4 else "8 > 3 > 5" if z > 0 else "8 > 5 > 3"
            assert f"order {order}" in alt(box)


@pytest.mark.parametrize("largest", [3.0, 12.3, -47.9])
def test_logit_sliders_reach_every_given_logit(largest):
    box = widgets.temperature_explorer([largest, 0.5], ["a", "b"])
    slider = controls(box)["z, a"]
    assert slider.value == pytest.approx(largest)
    assert slider.min <= -10 and slider.max >= 10


def test_logits_between_the_steps_are_rounded_so_that_page_and_picture_agree():
    box = widgets.temperature_explorer(torch.tensor([0.4338, 0.3812, -2.0]), CLASSES)
    sliders = [slider for name, slider in controls(box).items() if name.startswith("z")]
    assert [slider.value for slider in sliders] == [0.43, 0.38, -2.0]
    for slider in sliders:
        assert slider.value == pytest.approx(nearest_step(slider), abs=1e-9)
    assert "order 8 > 3 > 5" in alt(box)
    entropy = torch.special.entr(soften(torch.tensor([0.43, 0.38, -2.0]), 4.0)).sum()
    assert f"entropy {entropy:.3f} " in alt(box)


def test_more_logits_than_classes_are_refused():
    with pytest.raises(ValueError):
        widgets.temperature_explorer([1.0, 2.0, 3.0], ["a", "b"])


# --- soft labels -------------------------------------------------------------------------------------


def test_soft_label_explorer_shows_the_picture_asked_for_at_t():
    box = EXPLORERS["soft label"]()
    sliders = controls(box)
    assert list(sliders) == ["picture", "temperature T"]
    assert (sliders["picture"].min, sliders["picture"].max) == (0, 2)
    for k in range(3):
        caption = f"picture {k}, label {CLASSES[LABELS[k]]}"
        for temperature in (0.125, 2.0, 128.0):
            sliders["picture"].value = k
            sliders["temperature T"].value = temperature
            p, hard = soften(MANY[k], temperature), soften(MANY[k])
            first = int(MANY[k].argmax())
            assert f"{caption}: T = 1 {CLASSES[first]} {hard[first]:.2f}" in alt(box)
            assert f"T = {temperature:.3g} {CLASSES[first]} {p[first]:.2f}" in alt(box)
        row = {"T = 1": hard, "T = 128": p}
        figure = plots.digit_gallery(PICTURES[k, None], [row], CLASSES, [caption])
        figure.set_figwidth(6)
        assert picture(box) == png(figure)


# --- loss --------------------------------------------------------------------------------------------


def test_loss_explorer_shows_kd_loss_and_its_terms():
    box = EXPLORERS["loss"]()
    sliders = controls(box)
    assert list(sliders) == ["α (hard label)", "temperature T"]
    assert (sliders["α (hard label)"].min, sliders["α (hard label)"].max) == (0, 1)
    label = torch.tensor(0)
    for alpha in (0.0, 0.35, 1.0):
        for temperature in (0.125, 1.0, 4.0, 128.0):
            sliders["α (hard label)"].value = alpha
            sliders["temperature T"].value = temperature
            loss = kd_loss(STUDENT, LOGITS, label, temperature=temperature, alpha=alpha)
            soft = soft_target_loss(STUDENT, LOGITS, temperature=temperature)
            hard = torch.nn.functional.cross_entropy(STUDENT, label)
            assert alt(box).startswith(
                f"CE {hard:.3f}   T²·KL {soft:.3f}   "
                f"loss = {alpha:.2f}·CE + {1 - alpha:.2f}·T²·KL = {loss:.3f}. "
            )


# --- divergences -------------------------------------------------------------------------------------


def bell(x: torch.Tensor, centre: float, width: float) -> torch.Tensor:
    density = torch.exp(-0.5 * ((x.double() - centre) / width) ** 2)
    return density / density.sum()


@pytest.fixture
def words_alone(monkeypatch):
    """No picture is painted, which takes longest; its alt text is there."""
    monkeypatch.setattr(widgets, "image_tag", lambda figure: f'<img alt="{html.escape(figure.get_label())}">')


def place(box: ipw.VBox, **values: float | str) -> str:
    """The alt text once the controls of these names, with _ for a space, have these values."""
    for name, value in values.items():
        controls(box)[name.replace("_", " ")].value = value
    return alt(box)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_divergence_explorer_shows_value_bound_and_push(divergence, words_alone):
    box = EXPLORERS["divergence"]()
    assert list(controls(box)) == ["divergence", "β", "centre of q", "width of q"]
    assert (controls(box)["centre of q"].min, controls(box)["centre of q"].max) == (-6, 6)
    place(box, divergence=divergence)
    p, x = BUMPS.double(), X.double()
    for centre, width, beta in ((-2.4, 0.6, 0.1), (3.0, 6.0, 0.95))[: 1 + (divergence in OF_MIXTURE)]:
        told = place(box, centre_of_q=centre, width_of_q=width, β=beta)
        log_q = bell(X, centre, width).log()
        q, m = log_q.exp(), beta * p + (1 - beta) * log_q.exp()
        forward, reverse = torch.xlogy(p, p / q).sum(), torch.xlogy(q, q / p).sum()
        skewed = torch.xlogy(p, p / m).sum(), torch.xlogy(q, q / m).sum()
        falling = p.sort(descending=True).values
        least = falling[(falling.cumsum(0) < 0.5).sum()]  # of the head
        a = (p - q).abs()[p >= least].sum() / (p - q).abs().sum()
        wanted, most = {
            "forward": (forward, None), "reverse": (reverse, None),
            "jsd": (beta * skewed[0] + (1 - beta) * skewed[1],
                    -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)),
            "skew-forward": (skewed[0], -math.log(beta)), "skew-reverse": (skewed[1], -math.log(1 - beta)),
            "tvd": ((p - q).abs().sum() / 2, 1.0), "akl": (a * forward + (1 - a) * reverse, None),
        }[divergence]  # fmt: skip
        assert told.startswith(f"{divergence}, ")
        assert float(re.search(r": (\d+\.\d+) here, ", told)[1]) == pytest.approx(wanted.item(), abs=6e-4)
        assert re.findall(r"at most (\d+\.\d+):", told) == ([f"{most:.3f}"] if most else [])
        assert (f"β = {beta:.2f}" in told) == (divergence in OF_MIXTURE)
        assert divergence != "akl" or f"akl, {a:.2f} KL(p‖q) + rest KL(q‖p): " in told
        mean = (q * x).sum()
        said = re.search(r"student q: mean (-?\d+\.\d), standard deviation (\d+\.\d)", told)
        assert float(said[1]) == pytest.approx(mean.item(), abs=0.051)
        assert float(said[2]) == pytest.approx((q * (x - mean) ** 2).sum().sqrt().item(), abs=0.051)
        push = {"forward": p - q, "reverse": q * ((p / q).log() + reverse)}.get(divergence)
        if push is not None:
            assert f"strongest push up: {push.max():.2g} at {x[push.argmax()]:.1f}; " in told
            assert f"strongest push down: {push.min():.2g} at {x[push.argmin()]:.1f}." in told


def test_descent_covers_by_forward_kl_and_stays_on_a_bump_by_what_is_bounded(words_alone):
    box = EXPLORERS["divergence"]()
    ends = {}
    for divergence in DIVERGENCES:
        told = place(box, divergence=divergence, β=0.5, centre_of_q=2.4, width_of_q=0.72)
        ends[divergence] = re.search(r"ends: mean (\S+), standard deviation (\S+);", told).groups()
    p = BUMPS.double()
    mean = (p * X).sum().item()
    assert float(ends["forward"][0]) == pytest.approx(mean, abs=0.16)
    assert float(ends["forward"][1]) == pytest.approx((p * (X - mean) ** 2).sum().sqrt().item(), abs=0.1)
    for divergence in ("reverse", "jsd", "skew-forward", "skew-reverse"):
        assert ends[divergence] == ("2.0", "0.5"), divergence
    assert 1.5 < float(ends["tvd"][0]) < 2.0


def test_divergence_explorer_knows_an_infinite_divergence(words_alone):
    """p is 0 on the right half: KL(p‖q) is finite, KL(q‖p) is not, JSD is bounded by log 2."""
    p = (X < 0).float() / (X < 0).sum()
    box = widgets.divergence_explorer(X, p)
    q = bell(X, 0.0, 1.5)
    left = p > 0
    forward = (p[left] * (p[left].log() - q[left].log())).sum()
    here = {name: re.search(r": (\S+) here", place(box, divergence=name))[1] for name in DIVERGENCES}
    assert here["forward"] == f"{forward:.3f}" and here["reverse"] == here["akl"] == "∞"
    assert 0 < float(here["jsd"]) < math.log(2)


@pytest.mark.parametrize("span", [1.0, 12.0, 1000.0])
def test_sliders_of_the_divergence_explorer_fit_the_axis(span):
    x = torch.linspace(0, span, 101)
    box = widgets.divergence_explorer(x, torch.full((101,), 1 / 101))
    for slider in [*controls(box).values()][2:]:
        assert 20 <= (slider.max - slider.min) / slider.step <= 400
        assert slider.min < slider.value < slider.max


# --- plans -------------------------------------------------------------------------------------------


def test_plan_explorer_shows_what_plan_says():
    box = EXPLORERS["plan"]()
    chosen = controls(box)
    wanted = {
        "teacher": "Llama-70B", "student": "Llama-8B", "hardware": "H200-141GB", "devices": 8,
        "method": "cached", "tokens of a text": 2048, "texts at once": 4,
    }
    for name, value in wanted.items():
        chosen[name].value = value
    found = plan(
        "Llama-70B", "Llama-8B", "H200-141GB×8", 100e6, method="cached", context=2048, batch_size=4
    )
    assert f"8 × H200-141GB: fits, {found.sharding}, {found.seconds / 3600:.3g} hours" in alt(box)
    for phase in found.phases:
        assert f"{phase.name}: {phase.total / 1e9:.1f} (" in alt(box)
    assert f"line at {found.limit / 1e9:.1f}" in alt(box)
    chosen["devices"].value = 1
    assert "1 × H200-141GB: does not fit" in alt(box)
