"""The airline tools on a small made-up airline: what they charge, what they change, how they refuse."""

import json
from typing import Any

import pytest

from envs.airline import AirlineTools, FlightDB
from envs.types import Action

ANN = {"first_name": "Ann", "last_name": "Lee", "dob": "1990-01-01"}
BOB = {"first_name": "Bob", "last_name": "Lee", "dob": "1991-01-01"}
SEATS = {"basic_economy": 0, "economy": 2, "business": 9}
OPEN = {"status": "available", "available_seats": SEATS, "prices": {"basic_economy": 50, "economy": 100, "business": 300}}


def flight(number: str, origin: str, destination: str, departs: str, lands: str, **dates: Any) -> dict[str, Any]:
    return {
        "flight_number": number,
        "origin": origin,
        "destination": destination,
        "scheduled_departure_time_est": departs,
        "scheduled_arrival_time_est": lands,
        "dates": {f"2024-05-{key.removeprefix('d')}": status for key, status in dates.items()},
    }


FLIGHTS = [
    flight("HAT001", "SFO", "JFK", "06:00:00", "12:00:00", d16=OPEN, d14={"status": "cancelled"}),
    flight("HAT002", "JFK", "BOS", "13:00:00", "14:00:00", d16=OPEN),
    flight("HAT003", "JFK", "BOS", "11:00:00", "12:00:00", d16=OPEN),
    flight("HAT004", "SFO", "JFK", "20:00:00", "02:00:00+1", d16=OPEN, d08=OPEN),
    flight("HAT005", "JFK", "BOS", "05:00:00", "06:00:00", d17=OPEN, d09=OPEN),
]
BOOKED = {
    "reservation_id": "AAAAAA",
    "user_id": "ann_lee_1",
    "origin": "SFO",
    "destination": "JFK",
    "flight_type": "one_way",
    "cabin": "economy",
    "flights": [{"flight_number": "HAT001", "origin": "SFO", "destination": "JFK", "date": "2024-05-16", "price": 80}],
    "passengers": [ANN],
    "payment_history": [{"payment_id": "gift_card_1", "amount": 80}],
    "created_at": "2024-05-01T00:00:00",
    "total_baggages": 1,
    "nonfree_baggages": 0,
    "insurance": "no",
}
METHODS = [
    {"source": "gift_card", "id": "gift_card_1", "amount": 500},
    {"source": "certificate", "id": "certificate_1", "amount": 100},
    {"source": "credit_card", "id": "credit_card_1", "brand": "visa", "last_four": "1111"},
]
USER = {
    "user_id": "ann_lee_1",
    "name": {"first_name": "Ann", "last_name": "Lee"},
    "address": {"address1": "1 Road", "city": "Rome", "country": "USA", "state": "NY", "zip": "10000"},
    "email": "ann@example.com",
    "dob": "1990-01-01",
    "payment_methods": {method["id"]: method for method in METHODS},
    "saved_passengers": [],
    "membership": "gold",
    "reservations": ["AAAAAA"],
}
BASE = FlightDB.load(
    {"flights": {f["flight_number"]: f for f in FLIGHTS}, "reservations": {"AAAAAA": BOOKED}, "users": {"ann_lee_1": USER}}
)
TRIP = {
    "user_id": "ann_lee_1",
    "origin": "SFO",
    "destination": "JFK",
    "flight_type": "one_way",
    "cabin": "economy",
    "flights": [{"flight_number": "HAT001", "date": "2024-05-16"}],
    "passengers": [ANN],
    "payment_methods": [{"payment_id": "gift_card_1", "amount": 180}],
    "total_baggages": 2,
    "nonfree_baggages": 1,
    "insurance": "yes",
}


@pytest.fixture
def shop() -> AirlineTools:
    return AirlineTools(BASE.fresh())


def answer(tools: AirlineTools, name: str, **arguments: Any) -> Any:
    """The parsed answer of a call that must succeed."""
    result = tools.use(Action(name, arguments))
    assert not result.error, result.content
    return json.loads(result.content)


def error(tools: AirlineTools, name: str, **arguments: Any) -> str:
    result = tools.use(Action(name, arguments))
    assert result.error
    return result.content.removeprefix("Error: ")


def seats(tools: AirlineTools) -> int:
    return tools.db.flights["HAT001"].dates["2024-05-16"].available_seats["economy"]


def card(tools: AirlineTools) -> float:
    return tools.db.users["ann_lee_1"].payment_methods["gift_card_1"].amount


def test_there_are_fourteen_tools_and_six_write():
    assert len(AirlineTools.schemas()) == 14
    assert AirlineTools.mutating == {
        "book_reservation",
        "cancel_reservation",
        "send_certificate",
        "update_reservation_baggages",
        "update_reservation_flights",
        "update_reservation_passengers",
    }


def test_lists_of_objects_are_described_in_place():
    book = next(s["function"]["parameters"] for s in AirlineTools.schemas() if s["function"]["name"] == "book_reservation")
    assert book["properties"]["flights"]["items"] == {
        "type": "object",
        "properties": {
            "flight_number": {"type": "string", "description": "Flight number, such as 'HAT001'."},
            "date": {"type": "string", "description": "Date of the flight, YYYY-MM-DD."},
        },
        "required": ["flight_number", "date"],
    }
    assert book["properties"]["cabin"]["enum"] == ["business", "economy", "basic_economy"]
    assert len(book["required"]) == 11


def test_a_booking_takes_seats_and_money_and_appears_in_the_profile(shop):
    booked = answer(shop, "book_reservation", **TRIP)
    assert booked["reservation_id"] == "HATHAT" and booked["status"] is None and booked["created_at"] == "2024-05-15T15:00:00"
    assert booked["flights"] == [{**BOOKED["flights"][0], "price": 100}]
    assert (seats(shop), card(shop)) == (1, 320.0)
    assert shop.db.users["ann_lee_1"].reservations == ["AAAAAA", "HATHAT"]
    assert answer(shop, "get_reservation_details", reservation_id="HATHAT") == booked
    assert set(shop.changes()) == {"flights", "reservations", "users"}
    assert BASE.flights["HAT001"].dates["2024-05-16"].available_seats == SEATS and BASE.changes() == {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"user_id": "nobody"}, "User nobody not found"),
        ({"flights": [{"flight_number": "HAT999", "date": "2024-05-16"}]}, "Flight HAT999 not found"),
        ({"flights": [{"flight_number": "HAT001", "date": "2024-05-30"}]}, "Flight HAT001 not found on date 2024-05-30"),
        ({"flights": [{"flight_number": "HAT001", "date": "2024-05-14"}]}, "Flight HAT001 not available on date 2024-05-14"),
        ({"cabin": "basic_economy"}, "Not enough seats on flight HAT001"),
        ({"payment_methods": [{"payment_id": "gift_card_9", "amount": 180}]}, "Payment method gift_card_9 not found"),
        (
            {"payment_methods": [{"payment_id": "certificate_1", "amount": 180}]},
            "Not enough balance in payment method certificate_1",
        ),
        (
            {"payment_methods": [{"payment_id": "gift_card_1", "amount": 179}]},
            "Payment amount does not add up, total price is 180, but paid 179",
        ),
        ({"flights": ["HAT001"]}, "'str' object has no attribute 'flight_number'"),
        ({"flights": None}, "'NoneType' object is not iterable"),
        ({"nonfree_baggages": "1"}, "unsupported operand type(s) for +=: 'int' and 'str'"),
    ],
)
def test_a_booking_that_cannot_be_made_changes_nothing(shop, change, words):
    assert error(shop, "book_reservation", **{**TRIP, **change}) == words
    assert shop.changes() == {}


def test_wrong_members_are_named_by_pydantic_as_in_upstream(shop):
    words = error(shop, "book_reservation", **{**TRIP, "flights": [{"flight_number": "HAT001"}]})
    assert words.startswith("1 validation error for FlightInfo\ndate\n  Field required")
    words = error(shop, "book_reservation", **{**TRIP, "cabin": "first"})
    assert words.startswith("1 validation error for Reservation\ncabin\n")


def test_a_certificate_is_used_up(shop):
    pay = [{"payment_id": "certificate_1", "amount": 100}, {"payment_id": "credit_card_1", "amount": 80}]
    answer(shop, "book_reservation", **{**TRIP, "payment_methods": pay})
    assert "certificate_1" not in shop.db.users["ann_lee_1"].payment_methods


def test_a_certificate_that_pays_twice_is_lost_with_the_booking(shop):
    pay = [{"payment_id": "certificate_1", "amount": 90}] * 2
    assert error(shop, "book_reservation", **{**TRIP, "payment_methods": pay}) == "'certificate_1'"
    assert "certificate_1" not in shop.db.users["ann_lee_1"].payment_methods and list(shop.changes()) == ["users"]


def test_a_flight_that_is_booked_twice_in_a_trip_loses_two_seats(shop):
    twice = {"flights": TRIP["flights"] * 2, "payment_methods": [{"payment_id": "gift_card_1", "amount": 280}]}
    answer(shop, "book_reservation", **{**TRIP, **twice})
    assert seats(shop) == 0
    assert error(shop, "book_reservation", **TRIP) == "Not enough seats on flight HAT001"


def test_three_reservations_and_three_certificates_are_the_most(shop):
    trip = {**TRIP, "cabin": "business", "insurance": "no", "payment_methods": [{"payment_id": "credit_card_1", "amount": 350}]}
    ids = [answer(shop, "book_reservation", **trip)["reservation_id"] for _ in range(3)]
    assert ids == ["HATHAT", "HATHAU", "HATHAV"]
    assert error(shop, "book_reservation", **trip) == "Too many reservations"
    for number in (3221322, 3221323, 3221324):
        said = shop.use(Action("send_certificate", {"user_id": "ann_lee_1", "amount": 50})).content
        assert said == f"Certificate certificate_{number} added to user ann_lee_1 with amount 50."
    assert error(shop, "send_certificate", user_id="ann_lee_1", amount=50) == "Too many certificates"
    assert shop.db.users["ann_lee_1"].payment_methods["certificate_3221322"].amount == 50.0


def test_a_cancellation_books_the_payments_back_and_frees_nothing(shop):
    cancelled = answer(shop, "cancel_reservation", reservation_id="AAAAAA")
    assert cancelled["status"] == "cancelled"
    assert [payment["amount"] for payment in cancelled["payment_history"]] == [80, -80]
    assert (seats(shop), card(shop)) == (2, 500.0) and list(shop.changes()) == ["reservations"]
    again = answer(shop, "cancel_reservation", reservation_id="AAAAAA")
    assert [payment["amount"] for payment in again["payment_history"]] == [80, -80, -80, 80]


def test_changed_flights_cost_or_refund_the_difference(shop):
    change = {"reservation_id": "AAAAAA", "cabin": "economy", "payment_id": "gift_card_1"}
    same = [{"flight_number": "HAT001", "date": "2024-05-16"}]
    kept = answer(shop, "update_reservation_flights", **change, flights=same)
    assert kept["flights"][0]["price"] == 80 and len(kept["payment_history"]) == 1 and shop.changes() == {}
    longer = [*same, {"flight_number": "HAT002", "date": "2024-05-16"}]
    changed = answer(shop, "update_reservation_flights", **change, flights=longer)
    assert [f["price"] for f in changed["flights"]] == [80, 100]
    assert changed["payment_history"][-1] == {"payment_id": "gift_card_1", "amount": 100} and card(shop) == 400.0
    cheaper = answer(shop, "update_reservation_flights", **change, flights=same)
    assert cheaper["payment_history"][-1]["amount"] == -100 and card(shop) == 500.0
    upgraded = answer(shop, "update_reservation_flights", **{**change, "cabin": "business"}, flights=same)
    assert (upgraded["cabin"], upgraded["flights"][0]["price"], card(shop)) == ("business", 300, 280.0)
    assert seats(shop) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"reservation_id": "BBBBBB"}, "Reservation BBBBBB not found"),
        ({"payment_id": "gift_card_9"}, "Payment method not found"),
        ({"payment_id": "certificate_1"}, "Certificate cannot be used to update reservation"),
        ({"cabin": "first"}, "'first'"),
        (
            {"cabin": "business", "flights": [{"flight_number": "HAT001", "date": "2024-05-16"}] * 3},
            "Gift card balance is not enough",
        ),
    ],
)
def test_a_change_of_flights_that_cannot_be_made_changes_nothing(shop, change, words):
    flights = [{"flight_number": "HAT002", "date": "2024-05-16"}]
    whole = {"reservation_id": "AAAAAA", "cabin": "economy", "flights": flights, "payment_id": "gift_card_1"}
    assert error(shop, "update_reservation_flights", **{**whole, **change}) == words
    assert shop.changes() == {}


def test_only_new_paid_bags_cost(shop):
    change = {"reservation_id": "AAAAAA", "payment_id": "gift_card_1"}
    more = answer(shop, "update_reservation_baggages", **change, total_baggages=4, nonfree_baggages=2)
    assert (more["total_baggages"], more["nonfree_baggages"], card(shop)) == (4, 2, 400.0)
    fewer = answer(shop, "update_reservation_baggages", **change, total_baggages=1, nonfree_baggages=0)
    assert len(fewer["payment_history"]) == 2 and card(shop) == 400.0
    part = error(shop, "update_reservation_baggages", **change, total_baggages=1, nonfree_baggages=0.25)
    assert part.startswith("1 validation error for Payment") and card(shop) == 387.5  # charged, and then not written down


def test_passengers_are_exchanged_one_for_one(shop):
    changed = answer(shop, "update_reservation_passengers", reservation_id="AAAAAA", passengers=[BOB])
    assert changed["passengers"] == [BOB]
    words = error(shop, "update_reservation_passengers", reservation_id="AAAAAA", passengers=[ANN, BOB])
    assert words == "Number of passengers does not match"


def test_searches_show_what_can_be_booked_in_the_order_of_the_table(shop):
    found = answer(shop, "search_direct_flight", origin="SFO", destination="JFK", date="2024-05-16")
    assert [f["flight_number"] for f in found] == ["HAT001", "HAT004"]
    assert list(found[0]) == [
        *("flight_number", "origin", "destination", "status", "scheduled_departure_time_est", "scheduled_arrival_time_est"),
        *("date", "available_seats", "prices"),
    ]
    assert found[0]["date"] is None and found[0]["available_seats"] == SEATS
    assert answer(shop, "search_direct_flight", origin="SFO", destination="JFK", date="2024-05-14") == []
    everywhere = answer(shop, "search_direct_flight", origin=None, destination=None, date="2024-05-16")
    assert [f["flight_number"] for f in everywhere] == ["HAT001", "HAT002", "HAT003", "HAT004"]
    assert answer(shop, "search_direct_flight", origin=["SFO"], destination="JFK", date="2024-05-16") == []
    assert error(shop, "search_direct_flight", origin="SFO", destination="JFK", date=["x"]) == "unhashable type: 'list'"


def test_a_search_sees_the_seats_that_were_taken(shop):
    answer(shop, "book_reservation", **TRIP)
    found = answer(shop, "search_direct_flight", origin="SFO", destination="JFK", date="2024-05-16")
    assert [(f["flight_number"], f["available_seats"]["economy"]) for f in found] == [("HAT001", 1), ("HAT004", 2)]


def test_what_a_search_has_shown_once_changes_nothing_for_another_search_or_another_environment():
    def searches(tools: AirlineTools) -> list[Any]:
        direct = answer(tools, "search_direct_flight", origin="SFO", destination="JFK", date="2024-05-16")
        return [direct, answer(tools, "search_onestop_flight", origin="SFO", destination="BOS", date="2024-05-16")]

    def with_dates(found: list[Any]) -> list[str | None]:
        direct, pairs = found
        return [flight["date"] for flight in (*direct, *(flight for pair in pairs for flight in pair))]

    first, booking = AirlineTools(BASE.fresh()), AirlineTools(BASE.fresh())
    before = searches(first)
    assert with_dates(before) == [None, None, "2024-05-16", "2024-05-16", "2024-05-16", "2024-05-17"]
    answer(booking, "book_reservation", **TRIP)
    after = searches(booking)
    assert after[0][0]["available_seats"]["economy"] == after[1][0][0]["available_seats"]["economy"] == 1
    booking.undo()
    assert searches(booking) == searches(first) == searches(AirlineTools(BASE.fresh())) == before


def test_connections_leave_after_the_first_flight_has_landed(shop):
    def pairs(date: str) -> list[list[tuple[str, str]]]:
        found = answer(shop, "search_onestop_flight", origin="SFO", destination="BOS", date=date)
        return [[(f["flight_number"], f["date"]) for f in pair] for pair in found]

    over_night = [("HAT004", "2024-05-16"), ("HAT005", "2024-05-17")]
    assert pairs("2024-05-16") == [[("HAT001", "2024-05-16"), ("HAT002", "2024-05-16")], over_night]
    assert pairs("2024-05-08") == []  # looked for on 2024-05-9


def test_the_status_of_a_flight_is_one_word(shop):
    assert shop.use(Action("get_flight_status", {"flight_number": "HAT001", "date": "2024-05-14"})).content == "cancelled"
    assert (
        error(shop, "get_flight_status", flight_number="HAT001", date="2024-05-01")
        == "Flight HAT001 not found on date 2024-05-01"
    )


def test_all_airports_are_listed(shop):
    airports = answer(shop, "list_all_airports")
    assert len(airports) == 20 and airports[0] == {"iata": "SFO", "city": "San Francisco"}
