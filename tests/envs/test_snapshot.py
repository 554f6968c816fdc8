"""Snapshots, forks and undo: of tables, of toolkits with two databases, of whole episodes."""

import pytest

from envs.database import Base, Database, Record, Table, alike, canonical_json, copied
from envs.env import Env
from envs.toolkit import ToolKit, ToolType, helper, tool
from envs.types import Action, AgentTurn, StopReason, ToolResult
from envs.users.base import UserReply
from envs.users.scripted import ScriptedUser


class Box(Record):
    n: int
    notes: list[str] = []  # noqa: RUF012


class Shelf(Database):
    tables = {"boxes": Box}  # noqa: RUF012

    boxes: Table[Box]


class Pocket(Database):
    tables = {"coins": Box}  # noqa: RUF012

    coins: Table[Box]


class PocketTools(ToolKit):
    db: Pocket

    @tool(ToolType.WRITE)
    def spend(self, coin: str) -> str:
        """Spend a coin.

        Args:
            coin: Which one.
        """
        self.db.coins.edit(coin).n -= 1
        return "spent"


class ShelfTools(ToolKit):
    """`sync` writes the number of coins on the shelf's first box."""

    db: Shelf
    user: PocketTools

    @tool(ToolType.READ)
    def look(self, box: str) -> Box:
        """Look into a box.

        Args:
            box: Which one.
        """
        return self.db.boxes[box]

    @tool(ToolType.WRITE)
    def write_on(self, box: str, note: str) -> Box:
        """Write a note on a box.

        Args:
            box: Which one.
            note: What to write.
        """
        found = self.db.boxes.edit(box)
        found.n += 1
        found.notes.append(note)
        return found

    @tool(ToolType.WRITE)
    def break_half_way(self, box: str) -> Box:
        """Write, then fail.

        Args:
            box: Which one.
        """
        self.db.boxes.edit(box).n = 99
        raise ValueError("it fell")

    @tool(ToolType.WRITE)
    def throw_away(self, box: str) -> str:
        """Remove a box.

        Args:
            box: Which one.
        """
        self.db.boxes.remove(box)
        return "gone"

    @tool(ToolType.WRITE)
    def unprintable(self, box: str) -> object:
        """Write, and answer what no one can print.

        Args:
            box: Which one.
        """
        self.db.boxes.edit(box).n = 99
        return object()

    @helper
    def number_is(self, box: str, n: int) -> bool:
        return self.db.boxes[box].n == n

    @helper
    def number(self, box: str) -> int:
        return self.db.boxes[box].n

    def sync(self) -> None:
        if "coins" in self.user.db.bases and self.db.boxes["a"].notes[:1] != [f"coins: {self.user.db.coins['c'].n}"]:
            self.db.boxes.edit("a").notes[:1] = [f"coins: {self.user.db.coins['c'].n}"]


SHELF = Shelf.load({"boxes": {"a": {"n": 1}, "b": {"n": 2}}})
POCKET = Pocket.load({"coins": {"c": {"n": 3}}})


@pytest.fixture
def shop() -> ShelfTools:
    shop = ShelfTools(SHELF.fresh(), PocketTools(POCKET.fresh()))
    shop.sync()
    return shop


def note(box: str, text: str) -> Action:
    return Action("write_on", {"box": box, "note": text})


SPEND = Action("spend", {"coin": "c"}, "user")


def test_a_fork_and_its_origin_go_their_own_ways(shop):
    shop.use(note("b", "one"))
    branch = shop.fork()
    assert branch.same_state(shop)
    shop.use(note("b", "two"))
    branch.use(SPEND)
    assert shop.db.boxes["b"].notes == ["one", "two"] and branch.db.boxes["b"].notes == ["one"]
    assert (shop.user.db.coins["c"].n, branch.user.db.coins["c"].n) == (3, 2)
    assert branch.db.boxes["a"].notes == ["coins: 2"] and shop.db.boxes["a"].notes == ["coins: 3"]
    assert not branch.same_state(shop)
    assert SHELF.boxes["b"].notes == [] and POCKET.coins["c"].n == 3


def test_a_snapshot_can_be_gone_back_to_again_and_again(shop):
    shop.use(note("a", "kept"))
    before, hashes = shop.snapshot(), (shop.db_hash(), shop.user_db_hash())
    for _ in range(2):
        shop.use(note("a", "lost"))
        shop.use(SPEND)
        shop.use(Action("throw_away", {"box": "b"}))
        assert (shop.db_hash(), shop.user_db_hash()) != hashes
        shop.restore(before)
        assert (shop.db_hash(), shop.user_db_hash()) == hashes


def test_undo_takes_back_the_last_write_and_only_that(shop):
    shop.use(note("b", "one"))
    shop.use(note("b", "two"))
    shop.use(Action("look", {"box": "b"}))
    shop.undo()
    assert shop.db.boxes["b"].notes == ["one"]
    with pytest.raises(ValueError, match="no write to undo"):
        shop.undo()
    shop.use(SPEND)
    shop.undo()
    assert shop.user.db.coins["c"].n == 3 and shop.db.boxes["a"].notes == ["coins: 3"]


def test_a_call_that_fails_half_way_leaves_what_it_wrote_and_can_be_undone(shop):
    assert shop.use(Action("break_half_way", {"box": "b"})).content == "Error: it fell"
    assert shop.db.boxes["b"].n == 99
    shop.undo()
    assert shop.db.boxes["b"].n == 2


def test_an_answer_that_cannot_be_printed_undoes_its_call(shop):
    assert shop.use(Action("unprintable", {"box": "b"})).error
    assert shop.db.boxes["b"].n == 2


def test_a_recorded_answer_that_could_not_be_printed_is_undone_in_the_replay_too(shop):
    call = Action("unprintable", {"box": "b"})
    recorded = shop.use(call).content
    again = ShelfTools(SHELF.fresh(), PocketTools(POCKET.fresh()))
    again.replay(call, recorded)
    assert again.db.boxes["b"].n == 2
    with pytest.raises(ValueError, match="recorded was 'gone'"):
        again.replay(call, "gone")


def test_a_replayed_answer_is_compared_as_json(shop):
    answer = shop.fork().use(note("b", "one")).content
    shop.fork().replay(note("b", "one"), answer)
    shop.fork().replay(note("b", "one"), answer.replace(" ", ""))
    with pytest.raises(ValueError, match="recorded was"):
        shop.fork().replay(note("b", "one"), answer.replace("one", "two"))


def test_a_replay_leaves_nothing_to_undo(shop):
    shop.use(note("b", "one"))
    shop.replay(SPEND, "spent")
    with pytest.raises(ValueError, match="no write to undo"):
        shop.undo()


def test_reading_does_not_sync_again_until_something_may_have_changed(shop, monkeypatch):
    synced = []
    sync = ShelfTools.sync

    def counted(self: ShelfTools) -> None:
        synced.append(self)
        sync(self)

    monkeypatch.setattr(ShelfTools, "sync", counted)
    look = Action("look", {"box": "a"})

    def syncs(*actions: Action) -> int:
        synced.clear()
        for action in actions:
            shop.use(action)
        return len(synced)

    assert syncs(look, look) == 1
    assert syncs(look) == 0
    assert syncs(note("b", "one"), look, SPEND, look, look) == 2
    assert syncs(Action("break_half_way", {"box": "b"})) == 0 and syncs(look, look) == 1
    shop.undo()
    assert syncs(look, look) == 1
    shop.call("spend", {"coin": "c"}, "user")
    assert syncs(look, look) == 1 and shop.db.boxes["a"].notes == ["coins: 1"]
    shop.run(SPEND)
    branch = shop.fork()
    assert syncs(look, look) == 1 and shop.db.boxes["a"].notes == ["coins: 0"]
    branch.use(look)
    assert branch.db.boxes["a"].notes == ["coins: 0"]


def test_a_sync_that_fails_is_tried_again_with_every_call(shop):
    shop.use(Action("throw_away", {"box": "a"}))
    for _ in range(2):
        assert shop.use(Action("look", {"box": "b"})) == ToolResult("Error: 'a'", error=True)


def test_arguments_without_end_are_refused_before_anything_is_written(shop):
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    result = shop.use(note("b", deep))
    assert result.error and "nested" in result.content
    assert shop.db.boxes["b"].n == 2


def test_a_removed_row_is_gone_from_every_view(shop):
    shop.use(Action("throw_away", {"box": "b"}))
    boxes = shop.db.boxes
    assert list(boxes) == ["a"] and len(boxes) == 1 and "b" not in boxes and boxes.get("b") is None
    assert shop.changes()["boxes"]["b"] is None
    assert shop.use(Action("throw_away", {"box": "b"})).error
    alone = Shelf.load({"boxes": {"a": {"n": 1, "notes": ["coins: 3"]}}})
    assert shop.db_hash() == alone.hash() and shop.db.same_as(alone)
    boxes.add("b", Box(n=2))
    assert shop.changes() == {"boxes": {"a": {"n": 1, "notes": ["coins: 3"]}}}


def test_changes_name_the_customers_tables(shop):
    shop.use(SPEND)
    assert shop.changes() == {
        "boxes": {"a": {"n": 1, "notes": ["coins: 2"]}},
        "user.coins": {"c": {"n": 2, "notes": []}},
    }


def test_an_index_finds_changed_and_new_rows_in_the_tables_order():
    rows = {key: Box(n=0, notes=[colour]) for key, colour in (("a", "red"), ("b", "blue"), ("c", "red"))}
    table = Table(Base(rows))

    def colour(row: Box) -> str:
        return row.notes[0]

    assert table.where("colour", colour, "red") == [rows["a"], rows["c"]]
    table.edit("b").notes[0] = "red"
    table.add("d", Box(n=0, notes=["red"]))
    assert [row.notes for row in table.where("colour", colour, "red")] == [["red"]] * 4
    assert table.where("colour", colour, "blue") == [] and table.where("colour", colour, ["red"]) == []
    table.edit("a").n = 1
    table.remove("c")
    table.remove("d")
    assert [row.n for row in table.where("colour", colour, "red")] == [1, 0]


def test_what_is_alike_hashes_alike_and_nearly_equal_values_are_told_apart():
    plain = [0, 0.0, -0.0, False, 1, 1.0, True, "1", "", None, float("nan"), float("-nan"), float("inf"), 10**400, "a\ud800"]
    values: list = [*plain, *([value] for value in plain), *({"n": value} for value in plain), [[]], [{}], {"n": 1, "m": 2}]
    values += [Box.model_construct(n=value) for value in values] + [{"m": 2, "n": 1}, (1,), {1}, object(), Price("1"), Box]
    for number, one in enumerate(values):
        same = [other for other in values if alike(one, other)]
        assert any(one is other for other in same)
        assert {as_hashed(other) for other in same} == {as_hashed(one)}
        assert all(alike(copied(value), value) for value in values[:number] if isinstance(value, list | dict | Box))
    assert not alike({"n": 1}, {"n": 1.0}) and not alike([True], [1]) and not alike([0.0], [-0.0])


class Price(str):
    """A text that prints as it likes."""


def as_hashed(value: object) -> str:
    return value.canonical() if isinstance(value, Box) else canonical_json(value)


def test_helpers_are_for_tasks_and_nothing_else_can_be_reached(shop):
    assert shop.call("number_is", {"box": "a", "n": 1}) is True
    assert shop.call("spend", {"coin": "c"}, "user") == "spent"
    for name in ("use", "db", "__init__", "nothing"):
        with pytest.raises(ValueError, match="no function"):
            shop.call(name, {})
    with pytest.raises(ValueError, match="no user tools"):
        PocketTools(POCKET.fresh()).call("spend", {"coin": "c"}, "user")
    assert shop.use(Action("number_is", {"box": "a", "n": 1})).content == "Error: Tool 'number_is' not found."
    assert {schema["function"]["name"] for schema in ShelfTools.schemas()} == set(ShelfTools.tools)


def test_an_assertion_must_answer_yes_or_no(shop):
    check = {"env_type": "assistant", "func_name": "number_is", "arguments": {"box": "a", "n": 1}}
    assert shop.check(check) and shop.check({**check, "assert_value": True})
    assert not shop.check({**check, "assert_value": False})
    with pytest.raises(ValueError, match="instead of bool"):
        shop.check({**check, "func_name": "number", "arguments": {"box": "a"}})


@pytest.mark.parametrize(
    ("action", "answer"),
    [
        (Action("look", {"box": "a"}, "user"), "Error: Tool 'look' not found."),
        (Action("spend", {"coin": "c"}), "Error: Tool 'spend' not found."),
        (Action("look", {"box": "a"}, "nobody"), "Error: Invalid requestor: nobody"),
        (
            Action("look", {"box": "a", "requestor": "user"}),
            "Error: tau2.environment.environment.Environment.make_tool_call() got multiple values for keyword argument "
            "'requestor'",
        ),
        (
            Action("look", {"tool_name": 1, "self": 2}),
            "Error: Environment.make_tool_call() got multiple values for argument 'tool_name'",
        ),
    ],
)
def test_who_calls_what_is_decided_as_in_the_benchmark(shop, action, answer):
    assert shop.use(action).content == answer


def test_a_domain_without_user_tools_says_so_and_a_solo_agent_has_both_kinds(shop):
    assert PocketTools(POCKET.fresh()).use(SPEND).content == "Error: User tools not available"
    shop.solo = True
    assert shop.use(Action("spend", {"coin": "c"})).content == "spent"
    assert shop.use(SPEND).content == "Error: User tool calls are not allowed in solo mode"


class CountingUser:
    """Says how often it was spoken to."""

    def reset(self, task: object, seed: int | None) -> None:
        self.heard: list[str] = []

    def opening(self) -> str:
        return "Hello."

    def reply(self, message: str) -> UserReply:
        self.heard.append(message)
        return UserReply(f"{len(self.heard)}", StopReason.USER_STOP if len(self.heard) > 2 else None)


def test_an_episode_branches_and_goes_back(retail):
    task = retail.tasks("train")[0]
    order_id = next(order.order_id for order in retail.database.orders.values() if order.status == "pending")
    cancel = AgentTurn(actions=(Action("cancel_pending_order", {"order_id": order_id, "reason": "no longer needed"}),))
    env = Env(retail, task, CountingUser())
    env.reset()
    env.step(AgentTurn("One."))
    before, start = env.snapshot(), env.transcript
    branch = env.fork()
    branch.step(cancel)
    assert env.transcript == start and env.toolkit.changes() == {}
    assert branch.toolkit.changes() and len(branch.transcript.messages) == len(start.messages) + 2
    for _ in range(2):
        env.step(AgentTurn("Two."))
        env.step(AgentTurn("Three."))
        assert env.stop_reason is StopReason.USER_STOP
        env.restore(before)
        assert env.transcript == start and not env.done and env.user.heard == ["One."]
    assert branch.step(AgentTurn("Two."))[0].content == "2"


def test_counters_are_part_of_a_snapshot(retail):
    env = Env(retail, retail.tasks("train")[0], ScriptedUser(), max_steps=3)
    env.reset()
    before = env.snapshot()
    call = AgentTurn(actions=(Action("calculate", {"expression": "1"}),))
    env.step(call)
    env.step(call)
    env.restore(before)
    env.step(call)
    env.step(call)
    assert not env.done
    env.step(AgentTurn(actions=(Action("calculate", {"expression": "2"}),)))
    assert env.stop_reason is StopReason.MAX_STEPS


def test_a_fork_costs_what_was_changed_and_not_what_there_is(retail):
    toolkit = retail.new_toolkit()
    order_id = next(order.order_id for order in retail.database.orders.values() if order.status == "pending")
    toolkit.use(Action("cancel_pending_order", {"order_id": order_id, "reason": "no longer needed"}))
    fork = toolkit.fork()
    others = [key for key in retail.database.orders if key != order_id]
    assert all(fork.db.orders[key] is retail.database.orders[key] for key in others)
    assert fork.changes() == toolkit.changes() and list(fork.changes()["orders"]) == [order_id]
