"""The tables: names are unique, publishers exist, rates are known, control publishes its rows."""

from __future__ import annotations

import importlib

import pytest

from robot.control_node import PUBLISHED
from robot.messages import Command, Message, Request
from robot.model import load_robot
from robot.nodes import NODES
from robot.topics import OPERATOR_TOPICS, SOURCES, TOPIC, TOPICS, Rank, make_codecs, source_index

RATES = {
    "control", "policy", "policy, and on change", "control / 50", "on event", "on input",
    "1 Hz", "1 Hz, and on change", "2 Hz", "20 Hz", "20 Hz, and on change", "50 Hz", "camera",
}  # fmt: skip


def test_names_are_unique():
    names = [topic.name for topic in TOPICS]
    assert len(set(names)) == len(names) and list(TOPIC) == names
    assert len({source.name for source in SOURCES}) == len(SOURCES)
    assert len({row.name for row in NODES}) == len(NODES)


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.name)
def test_every_row_is_complete(topic):
    assert topic.publisher in {row.name for row in NODES} | {"manager"}
    assert topic.rate in RATES and topic.doc and topic.logged
    assert issubclass(topic.message, Message) and topic.message.__doc__


def test_every_source_may_command_and_request():
    for index, source in enumerate(SOURCES):
        assert source_index(source.name) == index
        assert TOPIC[f"command.{source.name}"].message is Command
        assert TOPIC[f"request.{source.name}"].message is Request
    names = [source.name for source in SOURCES]
    assert set(OPERATOR_TOPICS) == {f"{k}.{name}" for k in ("command", "request") for name in names}


def test_a_local_operator_outranks_a_script():
    ranks = {source.name: source.rank for source in SOURCES}
    assert ranks["keyboard"] == Rank.LOCAL_OPERATOR > Rank.REMOTE_OPERATOR > Rank.SCRIPT
    assert ranks["script"] == Rank.SCRIPT


def test_control_publishes_its_rows_and_no_others():
    assert set(PUBLISHED) == {topic.name for topic in TOPICS if topic.publisher == "control"}
    assert {"low_cmd", "status", "policy_input"} <= set(PUBLISHED)
    assert TOPIC["target"].publisher == TOPIC["policy_info"].publisher == "pilot"


def test_topics_of_one_message_share_their_layout_and_no_others():
    codecs = make_codecs(load_robot("g1"))
    assert list(codecs) == list(TOPIC)
    assert codecs["command.script"] is codecs["command.keyboard"]
    hashes = {topic.message.__name__: codecs[topic.name].schema_hash for topic in TOPICS}
    assert len(set(hashes.values())) == len(hashes)


def test_process_rows_name_modules_that_can_be_imported():
    for row in NODES:
        assert callable(importlib.import_module(row.entry).main)
        assert row.when_text and row.priority and row.restart and row.doc
