"""Tables of the recipe: what they all are, [permit] and [checks]."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from limbeck.records import Distribution, Purpose


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
