"""The words that kdlib itself puts into figures, in the language of the notebook: English, or Chinese.

A notebook in a folder `notebooks/zh` speaks Chinese, any other English; the variable KDLIB_LANGUAGE, `en` or
`zh`, overrules that. Chinese is drawn where matplotlib finds a font for it, and never as empty boxes.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Literal

from matplotlib import font_manager

Language = Literal["en", "zh"]
# As matplotlib names them: of a collection such as NotoSansCJK.ttc it sees the first face only.
FONTS = (
    "Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Source Han Sans CN", "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei", "PingFang SC", "Hiragino Sans GB", "Heiti SC", "STHeiti", "Microsoft YaHei",
    "SimHei", "Noto Sans CJK JP", "Source Han Sans", "Droid Sans Fallback", "Arial Unicode MS",
)  # fmt: skip
NOTE = "（这台电脑上没有中文字体，图里的文字是英文。装一个，例如 Noto Sans CJK，再重启内核。）"

_chosen: ContextVar[Language | None] = ContextVar("language", default=None)
_FILES = re.compile(r"notosans(cjk|sc)|sourcehansans|wqy|pingfang|hiragino ?sans ?gb|stheiti|msyh", re.I)


def language() -> Language:
    """Of the notebook that runs; `ValueError` for a KDLIB_LANGUAGE that is neither."""
    if chosen := _chosen.get() or os.environ.get("KDLIB_LANGUAGE"):
        if chosen not in ("en", "zh"):
            raise ValueError(f"KDLIB_LANGUAGE is {chosen!r}; expected 'en' or 'zh', or none")
        return chosen
    try:
        here = Path.cwd()
    except FileNotFoundError:  # the folder was deleted meanwhile
        return "en"
    chinese = any(folder.parts[-2:] == ("notebooks", "zh") for folder in (here, *here.parents))
    return "zh" if chinese else "en"


@contextmanager
def speaking(wanted: Language) -> Iterator[None]:
    """Figures made in the block speak this language."""
    token = _chosen.set(wanted)
    try:
        yield
    finally:
        _chosen.reset(token)


@cache
def chinese_font() -> str | None:
    """The family of a font with Chinese characters, None where none is found."""

    def found() -> str | None:
        families = {font.name for font in font_manager.fontManager.ttflist}
        return next((name for name in FONTS if name in families), None)

    if found() is None:  # installed after matplotlib wrote its list, perhaps
        for path in filter(_FILES.search, font_manager.findSystemFonts()):
            font_manager.fontManager.addfont(path)
    return found()


def font_style() -> dict[str, object]:
    """Settings of matplotlib with which words can be drawn: the Chinese font for what the usual one lacks."""
    draws = language() == "zh" and chinese_font()
    return {"font.family": ["DejaVu Sans", chinese_font()]} if draws else {}


def strong() -> str:
    """A weight for words that stand out: bold, unless the Chinese font has none."""
    if not font_style():
        return "bold"
    heavy = {font.name for font in font_manager.fontManager.ttflist if font.weight in ("bold", 700)}
    return "bold" if chinese_font() in heavy else "normal"


def as_drawn(words: str) -> str:
    """The words as a figure shows them: in Chinese if it is to speak it and can."""
    return CHINESE.get(words, words) if language() == "zh" and chinese_font() else words


@cache
def tell() -> None:
    """Say, once a kernel, that figures stay English for want of a font."""
    if language() == "zh" and not chinese_font():
        print(NOTE)


CHINESE = {
    # titles and alt texts
    "Teacher and student": "教师模型与学生模型",
    "From a picture to a soft label": "从图片到软标签",
    "The distillation loss": "蒸馏损失",
    "Reasoning distillation": "推理蒸馏",
    "The fused loss": "融合损失",
    "A student of its teacher's blocks, healed": "用教师模型的块组成的学生模型，再做修复训练",
    "Where distillation can fail": "蒸馏可能在哪里失败",
    "What a student can copy": "学生模型可以模仿什么",
    "Schematic of {boxes} boxes and {arrows} arrows": "示意图，{boxes} 个方框、{arrows} 条箭头",
    "{start} to {end}": "{start} → {end}",
    # who and what
    "teacher": "教师模型", "student": "学生模型", "people": "人", "picture": "图片", "pictures": "图片",
    "soft labels": "软标签", "hard labels": "硬标签", "label y": "标签 y", "loss L": "损失 L",
    "weight 1 − α": "权重 1 − α", "weight α": "权重 α", "the same pictures": "同样的图片",
    "large, trained before": "大模型，事先训练好", "name one class": "只说一个类别",
    "soft label p": "软标签 p", "any numbers": "任意实数", "T > 1 flattens": "T > 1 更均匀",
    "positive, with sum 1": "都为正，和为 1",
    "teacher's logits": "教师的 logits", "student's logits": "学生的 logits",
    "p at T": "T 下的 p", "q at T": "T 下的 q", "q at T = 1": "T = 1 时的 q",
    # reasoning
    "1. Traces: the student imitates the texts that a verifier passes":
        "1. 推理轨迹：学生模型模仿通过验证的文本",
    "2. Logits: for each token of a given text, the teacher's probabilities":
        "2. Logits：给定一段文本，学教师模型在每个词元上的概率",
    "3. On-policy: the student writes, the teacher judges each token of it":
        "3. 在策略：学生模型自己写，教师模型逐个词元评判",
    "problems": "题目", "traces": "推理轨迹", "verifier": "验证器",
    "wrong answers are dropped": "答案错的丢掉",
    "texts": "文本", "p, each token": "每个词元的 p", "the same texts": "同样的文本",
    "own texts": "自己写的文本",
    "q for the same tokens": "同样这些词元的 q",
    # fused loss
    "loss of\nthis chunk": "这一块的\n损失",
    "gradients of\nhead, summed,\nand of hidden":
        "输出层的梯度\n逐块累加，还有\n隐藏状态的梯度",
    "hidden, N × H": "隐藏状态，N × H", "teacher's head\nH × V": "教师的输出层\nH × V",
    "student's head\nH × V": "学生的输出层\nH × V", "N × V: never there at once": "N × V：不会整个存在",
    "one chunk": "一个分块", "then the next chunk": "然后是下一块",
    "teacher's hidden states, N × H": "教师的隐藏状态，N × H",
    "student's hidden states, N × H": "学生的隐藏状态，N × H",
    "teacher's head, H × V": "教师的输出层，H × V", "student's head, H × V": "学生的输出层，H × V",
    "teacher's logits of one chunk": "教师在一个分块上的 logits",
    "student's logits of one chunk": "学生在一个分块上的 logits",
    # healing
    "text so far": "已有的文本", "teacher's blocks": "教师的块", "student's blocks": "学生的块",
    "p, next token": "下一个词元的 p", "q, next token": "下一个词元的 q",
    "20 of 30 are copied": "复制 30 块中的 20 块",
    # failures
    "the control": "对照", "of the wrong kind?": "种类不对？", "wrong?": "错了？", "too sure?": "太有把握？",
    "goes its own way?": "自行其是？",
    # copies
    "teacher's maps": "教师的特征图", "teacher's vectors": "教师的向量",
    "student's maps": "学生的特征图", "student's vectors": "学生的向量", "hint, attention": "hint、注意力",
    # axes
    "class": "类别", "probability": "概率", "temperature T": "温度 T", "entropy (nats)": "熵（奈特）",
    "accuracy": "准确率", "epoch": "轮", "seed": "随机种子", "step": "步", "loss": "损失",
    "Probabilities": "概率", "Entropy": "熵",
    "mean probability (%)": "平均概率（%）", "class in the soft label": "软标签中的类别",
    "true class": "真实类别",
    "confidence (size: share of the examples)": "置信度（点的大小：样本占比）",
    "push on the student's logit": "对学生 logit 的推力",
    "GB on each device": "每台设备上的 GB", "case": "情形", "row": "行",
    "block, from the input on": "块（从输入端数起）", "change (1 − cosine)": "改变量（1 − 余弦）",
}  # fmt: skip
