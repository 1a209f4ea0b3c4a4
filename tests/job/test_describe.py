"""The job file described for editors and people."""

import json
from pathlib import Path

from raysft.job import json_schema, markdown


def test_schema_describes_every_field():
    schema = json_schema()
    json.dumps(schema)
    for definition in schema["$defs"].values():
        section = definition["anyOf"][-1] if "anyOf" in definition else definition
        assert section["additionalProperties"] is False
        assert all("description" in p for p in section["properties"].values())
    assert {"betas", "nesterov", "alpha"} <= set(schema["$defs"]["Optimizer"]["properties"])


def test_table_of_fields_is_current():
    document = Path(__file__).parents[2] / "jobs" / "README.md"
    assert markdown() in document.read_text(), "put `raysft schema --table` into jobs/README.md"
