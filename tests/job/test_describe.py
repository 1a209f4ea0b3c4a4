"""The job file described for editors and people."""

import json
from pathlib import Path

from raysft.job import json_schema, markdown


def test_schema_describes_every_field():
    schema = json_schema()
    json.dumps(schema)
    for section in schema["$defs"].values():
        assert section["additionalProperties"] is False
        assert all("description" in p for p in section["properties"].values())
    assert {"betas", "nesterov", "alpha"} <= set(schema["$defs"]["Optimizer"]["properties"])


def test_the_table_in_the_readme_is_current():
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert markdown() in readme, "put the output of `raysft schema --table` into README.md"
