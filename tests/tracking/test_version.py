"""A version, as its entry in the registry describes it."""

import json

from cddpm.tracking import names
from cddpm.tracking.catalogue import ModelRecord, VersionRecord
from cddpm.tracking.version import is_ours, version_of

TAGS = {
    names.FINGERPRINT_PACKAGE: "f1",
    names.METRICS: '{"val/dice": 0.5}',
    names.SWEEP: "demo",
    names.TRIAL: "7",
    "a": "b",
}
MODEL = ModelRecord({"z": 2, "champion": 2, "other": 1}, {})


def test_an_entry_becomes_a_version() -> None:
    record = VersionRecord(2, "run", "models:/m-1", 1_700_000_000_000, TAGS)
    version = version_of(record, MODEL)
    assert (version.aliases, version.trial_name, version.model_id) == (("champion", "z"), "demo/0007", "m-1")
    assert (version.created, version.metrics) == ("2023-11-14T22:13:20+00:00", {"val/dice": 0.5})
    assert names.METRICS not in version.tags
    assert not version.archived
    plain = version.plain()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["trial_name"] == "demo/0007"


def test_what_is_for_machines_lies_in_one_tag_or_each_in_its_own() -> None:
    packed = {names.FINGERPRINT_PACKAGE: "f1", "a": "b"}
    shown = {key: value for key, value in TAGS.items() if key not in packed}
    records = [
        VersionRecord(2, "run", "models:/m-1", 0, tags) for tags in (TAGS, {**shown, names.RECORD: json.dumps(packed)})
    ]
    assert version_of(records[0], MODEL) == version_of(records[1], MODEL)
    assert is_ours(records[1])


def test_an_archived_one_and_one_without_a_trial() -> None:
    tags = {key: value for key, value in TAGS.items() if key != names.TRIAL} | {names.ARCHIVED: "{}"}
    version = version_of(VersionRecord(3, "run", "models:/m-1", 0, tags), MODEL)
    assert version.archived
    assert (version.trial_name, version.aliases) == ("demo", ())


def test_what_others_registered_is_not_ours() -> None:
    assert is_ours(VersionRecord(1, "", "", 0, TAGS))
    assert not is_ours(VersionRecord(1, "", "", 0, {"a": "b"}))
