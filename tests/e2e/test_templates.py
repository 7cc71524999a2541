"""Templates and schedules from the command line."""

from tests.e2e.instance import RunningRoost


def test_a_template_is_saved_changed_run_scheduled_and_removed(roost: RunningRoost) -> None:
    def said(*words: str) -> str:
        done = roost.command(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode().strip()

    id = said("template", "add", "echo hello $WHO", "--name", "greeting", "-e", "WHO=you", "--comment", "first")
    assert f"{id}  greeting  inline  1" in said("template", "list")
    assert said("template", "set", id, "--script", "echo bye $WHO", "--comment", "second") == "2"
    assert roost.api.wait(said("template", "run", id)).text == "bye you\n"
    assert roost.api.wait(said("template", "run", id, "--revision", "1", "-e", "WHO=all")).text == "hello all\n"
    assert said("template", "restore", id, "1") == "3"
    shown = said("template", "revisions", id)
    assert "first" in shown and "second" in shown
    schedule = said("schedule", "add", id, "0 0 1 1 *", "--timezone", "Europe/Berlin")
    assert schedule in said("schedule", "list")
    said("schedule", "disable", schedule)
    said("schedule", "enable", schedule)
    assert said("schedule", "runs", schedule, "--json") == '{\n  "runs": []\n}'
    said("schedule", "remove", schedule)
    said("template", "remove", id)
    assert id not in said("template", "list")
    assert roost.command("template", "run", id).returncode == 1
