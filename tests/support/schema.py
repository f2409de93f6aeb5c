"""Validates what commands print with --json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema

import vmfilter

SCHEMA = json.loads((Path(vmfilter.__file__).parent / "report" / "schema.json").read_bytes())


def valid(text: str, name: str) -> Any:
    """Return a document after validating it. name: of its definition."""
    data = json.loads(text)
    jsonschema.Draft202012Validator({**SCHEMA, "$ref": f"#/$defs/{name}"}).validate(data)
    return data
