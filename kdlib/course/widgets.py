"""Interactive explorers: sliders over the figures of `kdlib.course.plots`."""

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import ipywidgets as ipw
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread, imsave
from torch import Tensor

from kdlib.course import plots
from kdlib.course.figures import image_tag, png
from kdlib.losses.divergences import DIVERGENCES, OF_MIXTURE, Divergence, head, share_in
from kdlib.losses.kd import soft_target_loss, soften

_TEMPERATURES = [{"temperature": 2.0**power} for power in (-1, 0, 2, 4)]
_LOOK = {"style": {"description_width": "120px"}, "layout": ipw.Layout(width="480px")}


class Explorer(ipw.VBox):
    """Controls above a picture; without a kernel, an image of some of its states, one below another."""

    def __init__(self, draw: Callable[..., Figure], states: Sequence[Mapping], controls: Mapping):
        self._draw, self._states, self._controls = draw, states, controls
        self._picture = ipw.HTML()
        for control in controls.values():
            control.observe(self._redraw, "value")
        self._redraw()
        super().__init__([*controls.values(), self._picture])

    def _values(self) -> dict[str, object]:
        return {name: control.value for name, control in self._controls.items()}

    def _redraw(self, change: object = None) -> None:
        self._picture.value = image_tag(self._draw(**self._values()))

    def strip(self) -> tuple[bytes, str]:
        """PNG and alt text of the states, each below a line that says what was chosen."""
        rows, alts = [], []
        for state in self._states:
            picture = self._draw(**self._values() | state)
            chosen = ", ".join(f"{self._controls[k].description} = {shown(v)}" for k, v in state.items())
            line = Figure(figsize=(picture.get_figwidth(), 0.4))
            line.text(0.02, 0.3, chosen, weight="bold")
            rows += [imread(io.BytesIO(png(figure)))[..., :3] for figure in (line, picture)]
            alts.append(f"{chosen}: {picture.get_label()}")
        width = max(row.shape[1] for row in rows)
        rows = [
            np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=1.0) for row in rows
        ]
        with io.BytesIO() as buffer:
            imsave(buffer, np.concatenate(rows), format="png", pil_kwargs={"optimize": True})
            return buffer.getvalue(), "The explorer in some of its states. " + " ".join(alts)

    def _repr_mimebundle_(self, **kwargs: object) -> tuple[dict, dict]:
        """The view, which needs a kernel, and for readers without one the strip."""
        picture, alt = self.strip()
        shown = {"image/png": base64.b64encode(picture).decode(), "text/plain": alt}
        return super()._repr_mimebundle_(**kwargs) | shown, {"image/png": {"alt": alt}}


def shown(value: float | str) -> str:
    """What was chosen, as a caption says it."""
    return value if isinstance(value, str) else f"{value:.3g}"


def explorer(
    draw: Callable[..., Figure], states: Sequence[Mapping] = ({},), /, **controls: ipw.ValueWidget
) -> Explorer:
    """Controls above the figure that `draw` makes of their values by name, an image with alt text.

    Readers without a kernel see it in the given `states`: values of some controls, the others as they start.
    """
    return Explorer(draw, states, controls)


def temperature_explorer(logits: Sequence[float] | Tensor, classes: Sequence[str]) -> Explorer:
    """Move T and every logit; see the probabilities, their order and their entropy. logits (C,).

    Logits are rounded to the steps of their sliders, two decimals at most.
    """
    logits = [round(float(value), 2) for value in logits]
    # The page moves a slider to its nearest step and sends that back, so the steps must hold the logits.
    step = 0.1 if all(value == round(value, 1) for value in logits) else 0.01
    reach = max(10, *(math.ceil(abs(value)) for value in logits))

    def draw(temperature: float, **values: float) -> Figure:
        return plots.softened(torch.tensor(list(values.values())), temperature, classes)

    sliders = {
        f"z{k}": _slider(f"z, {label}", value, -reach, reach, step)
        for k, (label, value) in enumerate(zip(classes, logits, strict=True))
    }
    return explorer(draw, _TEMPERATURES, temperature=_temperature_slider(), **sliders)


def soft_label_explorer(images: Tensor, logits: Tensor, classes: Sequence[str], labels: Tensor) -> Explorer:
    """Leaf through pictures (N, 1, height, width) in [0, 1] and move T. logits (N, C), labels (N)."""

    def draw(picture: int, temperature: float) -> Figure:
        z = logits[picture]
        row = {"T = 1": soften(z), f"T = {temperature:.3g}": soften(z, temperature)}
        caption = f"picture {picture}, label {classes[labels[picture]]}"
        figure = plots.digit_gallery(images[picture : picture + 1], [row], classes, [caption])
        figure.set_figwidth(6)
        return figure

    pictures = ipw.IntSlider(0, 0, len(images) - 1, description="picture", **_LOOK)
    states = [{"picture": k, "temperature": 4.0} for k in range(min(3, len(images)))]
    return explorer(draw, states, picture=pictures, temperature=_temperature_slider())


def loss_explorer(
    teacher_logits: Tensor, student_logits: Tensor, label: int, classes: Sequence[str]
) -> Explorer:
    """Move α and T; see both terms of the loss and their push on each logit. Logits (C,)."""

    def draw(**values: float) -> Figure:
        return plots.loss_picture(teacher_logits, student_logits, label, classes, **values)

    alpha = _slider("α (hard label)", 0.5, 0, 1, step=0.05)
    states = [{"alpha": alpha, "temperature": 4.0} for alpha in (1.0, 0.5, 0.0)]
    return explorer(draw, states, alpha=alpha, temperature=_temperature_slider())


def divergence_explorer(x: Tensor, p: Tensor) -> Explorer:
    """Fit a normal distribution q to probabilities p (K,) of evenly spaced x (K,), by hand or by descent.

    For the divergence chosen it shows its value and the most it can be, its push on each logit of q, and the
    bell in which gradient descent from there ends.
    """
    x, p = x.double(), p.double()
    log_p = p.log().clamp(min=-1e29)  # finite where p is 0
    low, high = float(x[0]), float(x[-1])
    span, unit = high - low, (high - low) / 14

    def bell(centre: float | Tensor, width: float | Tensor) -> Tensor:
        return torch.log_softmax(-0.5 * ((x - centre) / width) ** 2, dim=-1)

    @cache
    def descent(centre: float, width: float, **of: float | str) -> Tensor:
        knobs = torch.tensor([centre / unit, math.log(width)], dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([knobs], 0.1)
        for _ in range(150):
            optimizer.zero_grad()
            log_q = bell(unit * knobs[0], knobs[1].exp())
            soft_target_loss(log_q, log_p, temperature=1.0, **of).backward()
            optimizer.step()
        return log_q.detach()

    def draw(divergence: Divergence, beta: float, centre: float, width: float) -> Figure:
        of = {"divergence": divergence, "beta": beta}
        log_q = bell(centre, width).requires_grad_()
        value = soft_target_loss(log_q, log_p, temperature=1.0, **of)
        (slope,) = torch.autograd.grad(value, log_q)
        ending = descent(centre, width, **of)
        values = value.item(), soft_target_loss(ending, log_p, temperature=1.0, **of).item()
        here, there = (f"{each:.3f}" if each < 1e9 else "∞" for each in values)
        q = log_q.detach().exp()
        title = f"{divergence}, {_about(divergence, beta, p, q)}: {here} here, {there} where descent ends"
        curves = {"teacher p": p, "student q": q, "where descent ends": ending.exp()}
        return plots.push_picture(x, curves, -slope, title=title)

    choice = ipw.Dropdown(options=DIVERGENCES, value="jsd", description="divergence", **_LOOK)
    weight = _slider("β", 0.5, 0.05, 0.95, step=0.05)
    centre = _slider("centre of q", (low + high) / 2, low, high, step=span / 200)
    width = _slider("width of q", span / 8, span / 50, span / 2, step=span / 200)
    # On the highest bump: who says anything of the others? The β is DistiLLM's.
    place = {"centre": round(float(x[p.argmax()]), 2) + 0.0, "width": round(unit, 2)}
    chosen = {"forward": {}, "reverse": {}, "skew-forward": {"beta": 0.1}, "tvd": {}, "akl": {}}
    states = [{"divergence": name} | beta | place for name, beta in chosen.items()]
    return explorer(draw, states, divergence=choice, beta=weight, centre=centre, width=width)


def _about(divergence: Divergence, beta: float, p: Tensor, q: Tensor) -> str:
    """The formula, and what else to know: the most that it can be, or how much of AKL is forward."""
    if divergence == "akl":
        return f"{share_in(head(p), (p - q).abs()):.2f} KL(p‖q) + rest KL(q‖p)"
    formula = {
        "forward": "KL(p‖q)", "reverse": "KL(q‖p)", "jsd": "β KL(p‖m) + (1 − β) KL(q‖m)",
        "skew-forward": "KL(p‖m)", "skew-reverse": "KL(q‖m)", "tvd": "½ Σ |p − q|",
    }[divergence]  # fmt: skip
    most = {
        "jsd": -beta * math.log(beta) - (1 - beta) * math.log1p(-beta),
        "skew-forward": -math.log(beta), "skew-reverse": -math.log1p(-beta), "tvd": 1.0,
    }.get(divergence)  # fmt: skip
    formula += f", β = {beta:.2f}" if divergence in OF_MIXTURE else ""
    return formula + (f", at most {most:.3f}" if most else "")


def plan_explorer(tokens: float = 100e6) -> Explorer:
    """Choose teacher, student, machine and method of training on so many tokens; see what `plan` says."""
    # transformers takes seconds to import, and no other explorer needs it.
    from kdlib.language.models.r1_distill import R1_DISTILL
    from kdlib.language.plan.hardware import HARDWARE
    from kdlib.language.plan.plan import plan

    def draw(teacher: str, student: str, hardware: str, **given: int | str) -> Figure:
        found = plan(teacher, student, hardware, tokens, **given)
        verdict = "fits" if found.fits else "does not fit"
        title = (
            f"{teacher} teaches {student} by {given['method']}\n{given['batch_size']} × {given['context']:,} "
            f"tokens on {given['devices']} × {hardware}: {verdict}, {found.sharding}, "
            f"{found.seconds / 3600:.3g} hours"
        )
        cases = {phase.name: phase.memory for phase in found.phases}
        return plots.memory_bars(cases, limit=found.limit, title=title)

    def choice(name: str, options: Sequence[object], value: object) -> ipw.Dropdown:
        return ipw.Dropdown(options=options, value=value, description=name, **_LOOK)

    powers = [2**power for power in range(6)]
    states = [{"method": "logits"}, {"method": "texts"}, {"teacher": "Qwen-32B", "devices": 4}]
    return explorer(
        draw,
        states,
        teacher=choice("teacher", list(R1_DISTILL), "Qwen-7B"),
        student=choice("student", list(R1_DISTILL), "Qwen-1.5B"),
        hardware=choice("hardware", list(HARDWARE), "H100-80GB"),
        devices=choice("devices", powers, 1),
        method=choice("method", ["texts", "logits", "cached"], "logits"),
        context=choice("tokens of a text", [1024 * power for power in powers], 4096),
        batch_size=choice("texts at once", powers, 1),
    )


def _slider(name: str, value: float, low: float, high: float, step: float) -> ipw.FloatSlider:
    return ipw.FloatSlider(value=value, min=low, max=high, step=step, description=name, readout_format=".2f",
                           **_LOOK)


def _temperature_slider() -> ipw.FloatLogSlider:
    # Quarter steps of powers of two, so that 1, 2, 4, 8, … can be reached exactly.
    return ipw.FloatLogSlider(value=4.0, base=2, min=-3, max=7, step=0.25, description="temperature T",
                              readout_format=".3g", **_LOOK)
