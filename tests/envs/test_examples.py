"""Example calls for prompts: they can be made, and give nothing away."""

import json
import re

import pytest

from envs.data import open_source
from envs.domain import DOMAINS, Domain, load_domain
from rewards.schema import functions, is_well_formed

SOURCE = open_source("packaged")


@pytest.fixture(params=DOMAINS)
def domain(request: pytest.FixtureRequest) -> Domain:
    return load_domain(request.param, SOURCE)


def test_every_domain_has_examples_that_fit_its_tools(domain: Domain):
    tools = functions(domain.tool_schemas)
    assert len(domain.examples) >= 2
    for said, call in domain.examples:
        assert said and is_well_formed(call, tools), call
    assert len({call.name for _, call in domain.examples}) == len(domain.examples)


def test_no_value_of_an_example_stands_in_a_task_or_in_the_database(domain: Domain):
    files = sorted((SOURCE.root / "domains" / domain.name).iterdir())
    known = "\n".join(path.read_text(encoding="utf-8") for path in files if path.suffix in (".json", ".toml"))
    assert {"tasks.json"} < {path.name for path in files}
    enums = set(re.findall(r'"([^"]*)"', json.dumps(domain.tool_schemas)))
    for _, call in domain.examples:
        values = [v for value in call.arguments.values() for v in (value if isinstance(value, list) else [value])]
        invented = [value for value in values if isinstance(value, str) and value not in enums]
        assert invented
        for value in invented:
            assert not re.search(rf"(?<!\w){re.escape(value)}(?!\w)", known), value
