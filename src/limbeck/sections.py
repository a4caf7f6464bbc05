"""Tables of the recipe that stand alone: what a table is, and those around teacher and student."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from limbeck.errors import InputError
from limbeck.records import Distribution, Purpose

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class Section(BaseModel):
    """A table of the recipe: no key that is not declared, no change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PermitSection(Section):
    """What the student is for, and a recorded permission where the terms ask for one."""

    purpose: Purpose = "product"
    competes: bool | None = Field(
        default=None, description="with the teacher's provider; only where its terms turn on it"
    )
    distribution: Distribution | None = Field(
        default=None, description="how the student is given out; only where the terms turn on it"
    )
    permission: str | None = Field(
        default=None, description="TOML: teacher, allowed_by, until, purpose"
    )
    permission_sha256: str | None = Field(
        default=None, pattern=r"^[0-9a-fA-F]{64}$", description="what that file must hash to"
    )

    @model_validator(mode="after")
    def _hash_of_a_file(self) -> PermitSection:
        if self.permission_sha256 and not self.permission:
            raise ValueError("permission_sha256 needs the permission that it is the hash of")
        return self


class ChecksSection(Section):
    """What an answer must pass to be learnt from; stored answers are judged anew when it changes.

    Every check that is named must hold. What fails is rejected, with the reason.
    """

    after: str | None = Field(
        default=None,
        min_length=1,
        description="the final answer follows the last of these, as ####; default: all of it is",
    )
    equals: Literal["text", "number"] | None = Field(
        default=None, description="the final answer must be the one in prompts.reference"
    )
    pattern: str | None = Field(
        default=None, description="regular expression that must be found in the answer"
    )
    json_schema: str | None = Field(
        default=None, description="file with a JSON schema; the answer must be JSON that fits it"
    )
    function: str | None = Field(
        default=None,
        pattern=r"^.+:[A-Za-z_]\w*$",
        description="your own code, as file.py:name or module:name, called with prompt and answer",
    )
    judge: int | None = Field(
        default=None, ge=1, le=10, description="lowest score, of 10, that the model in [judge] gave"
    )
    criteria: str = Field(
        default="It is correct, answers all of the question, and says nothing that is not so.",
        min_length=1,
        description="what the judge is told of a good answer",
    )
    majority: bool = Field(
        default=False,
        description="more than half of a prompt's samples must give the same final answer",
    )
    best: int | None = Field(
        default=None,
        ge=1,
        description="of a prompt's samples that pass, so many are kept: highest score first",
    )
    benchmarks: list[str] = Field(
        default=[], description="files of tests; rows that overlap with them are dropped"
    )
    overlap: int = Field(
        default=13,
        description="words in a row that a row may not share with a held-out prompt or benchmark; "
        "0: never looked for",
    )

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return pattern

    @model_validator(mode="after")
    def _makes_sense(self) -> ChecksSection:
        if self.overlap and not 5 <= self.overlap <= 100:
            raise ValueError("overlap must lie between 5 and 100 words, or be 0")
        if self.benchmarks and not self.overlap:
            raise ValueError("benchmarks are looked for with an overlap above 0")
        if self.after and not (self.equals or self.majority):
            raise ValueError("after says where the final answer stands, for equals or majority")
        return self


class BudgetSection(Section):
    """What the answers of a service may cost in all, and its prices where we do not know them."""

    dollars: float | None = Field(default=None, gt=0, description="stop before more is spent")
    tokens: int | None = Field(default=None, ge=1, description="likewise, read and written")
    input: float | None = Field(default=None, ge=0, description="dollars a million tokens read")
    cached: float | None = Field(default=None, ge=0, description="of those from a cache")
    output: float | None = Field(default=None, ge=0, description="dollars a million written")

    @model_validator(mode="after")
    def _whole_price(self) -> BudgetSection:
        if (self.input is None) != (self.output is None):
            raise ValueError("give both input and output, in dollars a million tokens")
        if self.cached is not None and self.input is None:
            raise ValueError("cached needs input and output beside it")
        return self


class ValidateSection(Section):
    """What the student must show on held-out prompts."""

    margin: float = Field(
        default=0.05, ge=0, description="how much worse still passes, on 0-to-1 metrics"
    )
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    prompts: int = Field(default=200, ge=2, description="held-out prompts that all three answer")
    resamples: int = Field(default=10_000, ge=1000, description="of the paired bootstrap")


class ExportSection(Section):
    """What leaves the run folder."""

    formats: list[Literal["safetensors"]] = Field(default=["safetensors"])
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    name: str | None = Field(
        default=None,
        pattern=NAME,
        description="what the student is called where it is given out; default: the recipe's name",
    )
    licence: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9.+-]*$",
        description="hub tag or SPDX id; default: what the terms, or the weights' licence, ask",
    )


class StudentSection(Section):
    """What learns: the teacher with layers dropped, or any model with the same tokenizer."""

    base: str = Field(default="teacher", description="teacher, or a folder, GGUF file or hub id")
    layers: int | None = Field(
        default=None, ge=1, description="how many of the teacher's layers stay"
    )
    parameters: str | None = Field(
        default=None,
        pattern=r"^\d+(\.\d+)?[MB]$",
        description='at most so many, as "90M" or "1.5B"',
    )

    @model_validator(mode="after")
    def _one_size(self) -> StudentSection:
        if self.layers is not None and self.parameters is not None:
            raise ValueError("give layers or parameters, not both")
        if self.base != "teacher" and (self.layers or self.parameters):
            raise ValueError('layers and parameters choose the size only of base = "teacher"')
        if self.base == "teacher" and not (self.layers or self.parameters):
            raise ValueError('base = "teacher" needs layers or parameters to say how small')
        return self

    def layers_left(self, there: int, layer: int, rest: int) -> int:
        """How many of a teacher's layers stay: `layers`, or what `parameters` has room for.

        Args:
            there: the teacher's layers.
            layer: parameters of one layer.
            rest: parameters of everything else.

        Raises:
            InputError: more layers are asked for than there are, or there is room for none.
        """
        if self.layers is not None:
            if self.layers > there:
                raise InputError(f"student.layers = {self.layers}, but the teacher has {there}")
            return self.layers
        assert self.parameters is not None, "the recipe was checked"
        most = float(self.parameters[:-1]) * {"M": 10**6, "B": 10**9}[self.parameters[-1]]
        fits = int((most - rest) // layer)
        if fits < 1:
            raise InputError(
                f"student.parameters = {self.parameters} leaves room for no layer: embeddings and "
                f"head take {rest / 1e6:.1f}M, a layer {layer / 1e6:.1f}M"
            )
        return min(fits, there)
