"""The fourteen tools of the airline agent.

They answer what τ²-bench v1.0.1 answers (`domains/airline/tools.py`), its quirks included: checks come in its order, arguments
meet the same operators (so that wrong ones fail with the same words), and a call that fails half-way leaves what it had written.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel

from envs.airline.models import (
    CabinClass,
    Certificate,
    DirectFlight,
    Flight,
    FlightDateStatus,
    FlightDateStatusAvailable,
    FlightDB,
    FlightInfo,
    FlightType,
    GiftCard,
    Insurance,
    Passenger,
    Payment,
    Reservation,
    ReservationFlight,
    User,
)
from envs.calculator import evaluate
from envs.toolkit import ToolKit, ToolType, tool

#: The time at which every conversation takes place.
NOW = "2024-05-15T15:00:00"

_NEW_RESERVATION_IDS = ("HATHAT", "HATHAU", "HATHAV")
_NEW_CERTIFICATE_IDS = ("certificate_3221322", "certificate_3221323", "certificate_3221324")

_AIRPORTS = {
    "SFO": "San Francisco",
    "JFK": "New York",
    "LAX": "Los Angeles",
    "ORD": "Chicago",
    "DFW": "Dallas",
    "DEN": "Denver",
    "SEA": "Seattle",
    "ATL": "Atlanta",
    "MIA": "Miami",
    "BOS": "Boston",
    "PHX": "Phoenix",
    "IAH": "Houston",
    "LAS": "Las Vegas",
    "MCO": "Orlando",
    "EWR": "Newark",
    "CLT": "Charlotte",
    "MSP": "Minneapolis",
    "DTW": "Detroit",
    "PHL": "Philadelphia",
    "LGA": "LaGuardia",
}
_AIRPORT_LIST = json.dumps([{"iata": iata, "city": city} for iata, city in _AIRPORTS.items()])


class AirlineTools(ToolKit):
    """Reads are free; every write needs the customer's yes first (the policy asks for it, no tool checks it)."""

    db: FlightDB

    @tool(ToolType.WRITE)
    def book_reservation(
        self,
        user_id: str,
        origin: str,
        destination: str,
        flight_type: FlightType,
        cabin: CabinClass,
        flights: list[FlightInfo],
        passengers: list[Passenger],
        payment_methods: list[Payment],
        total_baggages: int,
        nonfree_baggages: int,
        insurance: Insurance,
    ) -> Reservation:
        """Book a trip. Explain flights, price and payment and get an explicit yes from the customer first.

        Args:
            user_id: The customer's user id, such as 'sara_doe_496'.
            origin: IATA code of the airport where the trip begins, such as 'SFO'.
            destination: IATA code of the airport that the trip goes to, such as 'JFK'.
            flight_type: 'one_way' or 'round_trip'.
            cabin: The cabin of the whole trip.
            flights: Every flight of the trip, in order.
            passengers: Everybody who flies.
            payment_methods: What is paid with each payment method; together exactly the price of the trip.
            total_baggages: Number of checked bags.
            nonfree_baggages: How many of them are paid for (50 dollars each).
            insurance: Whether travel insurance is bought (30 dollars for each passenger).
        """
        flights = _validated(FlightInfo, flights)
        passengers = _validated(Passenger, passengers)
        payment_methods = _validated(Payment, payment_methods)
        user = self._user(user_id)
        reservation_id = self._new_reservation_id()
        reservation = Reservation(
            reservation_id=reservation_id,
            user_id=user_id,
            origin=origin,
            destination=destination,
            flight_type=flight_type,
            cabin=cabin,
            flights=[],
            passengers=passengers,
            payment_history=payment_methods,
            created_at=NOW,
            total_baggages=total_baggages,
            nonfree_baggages=nonfree_baggages,
            insurance=insurance,
        )
        total_price = 0
        for info in flights:
            flight = self._flight(info.flight_number)
            status = self._available(info.flight_number, info.date, cabin, len(passengers))
            price = status.prices[cabin]
            reservation.flights.append(_reserved(flight, info, price))
            total_price += price * len(passengers)
        if insurance == "yes":
            total_price += 30 * len(passengers)
        total_price += 50 * nonfree_baggages

        for payment in payment_methods:
            if payment.payment_id not in user.payment_methods:
                raise ValueError(f"Payment method {payment.payment_id} not found")
            method = user.payment_methods[payment.payment_id]
            if isinstance(method, GiftCard | Certificate) and method.amount < payment.amount:
                raise ValueError(f"Not enough balance in payment method {payment.payment_id}")
        total_payment = sum(payment.amount for payment in payment_methods)
        if total_payment != total_price:
            raise ValueError(f"Payment amount does not add up, total price is {total_price}, but paid {total_payment}")

        user = self.db.users.edit(user_id)
        for payment in payment_methods:
            method = user.payment_methods[payment.payment_id]
            if isinstance(method, GiftCard):
                method.amount -= payment.amount
            elif isinstance(method, Certificate):
                user.payment_methods.pop(payment.payment_id)
        for info in flights:
            self._take_seats(info, cabin, len(passengers))
        self.db.reservations.add(reservation_id, reservation)
        user.reservations.append(reservation_id)
        return reservation

    @tool(ToolType.GENERIC)
    def calculate(self, expression: str) -> str:
        """Work out an arithmetic expression, rounded to two decimals.

        Args:
            expression: Numbers, + - * /, parentheses and spaces, such as '2 * (3 + 4)'.
        """
        return evaluate(expression)

    @tool(ToolType.WRITE)
    def cancel_reservation(self, reservation_id: str) -> Reservation:
        """Cancel a whole reservation and refund every payment. Get an explicit yes from the customer first.

        Args:
            reservation_id: The reservation's id, such as 'ZFA04Y'.
        """
        paid = self._reservation(reservation_id).payment_history
        refunds = [Payment(payment_id=payment.payment_id, amount=-payment.amount) for payment in paid]
        reservation = self.db.reservations.edit(reservation_id)
        reservation.payment_history.extend(refunds)
        reservation.status = "cancelled"
        return reservation

    @tool(ToolType.READ)
    def get_reservation_details(self, reservation_id: str) -> Reservation:
        """Everything about a reservation: flights, passengers, payments, bags, insurance.

        Args:
            reservation_id: The reservation's id, such as '8JX2WO'.
        """
        return self._reservation(reservation_id)

    @tool(ToolType.READ)
    def get_user_details(self, user_id: str) -> User:
        """Everything about a customer: profile, membership, payment methods, reservation ids.

        Args:
            user_id: The customer's user id, such as 'sara_doe_496'.
        """
        return self._user(user_id)

    @tool(ToolType.READ)
    def list_all_airports(self) -> str:
        """All airports: IATA codes and cities."""
        return _AIRPORT_LIST

    @tool(ToolType.READ)
    def search_direct_flight(self, origin: str, destination: str, date: str) -> list[DirectFlight]:
        """Flights without a stop between two airports on a date that can be booked: times, seats, prices.

        Args:
            origin: IATA code of the airport of departure, such as 'JFK'.
            destination: IATA code of the airport of arrival, such as 'LAX'.
            date: The date, YYYY-MM-DD.
        """
        return self._direct_flights(date, origin, destination)

    @tool(ToolType.READ)
    def search_onestop_flight(self, origin: str, destination: str, date: str) -> list[list[DirectFlight]]:
        """Pairs of flights with one stop between two airports that can be booked together.

        Args:
            origin: IATA code of the airport of departure, such as 'JFK'.
            destination: IATA code of the airport of arrival, such as 'LAX'.
            date: The date of the first flight, YYYY-MM-DD.
        """
        pairs = []
        for first in self._direct_flights(date, origin, None, dated=True):
            arrival = first.scheduled_arrival_time_est
            next_date = f"2024-05-{int(date[-2:]) + 1}" if "+1" in arrival else date
            connections = self._direct_flights(next_date, first.destination, destination, leave_after=arrival, dated=True)
            pairs += [[first, second] for second in connections]
        return pairs

    @tool(ToolType.WRITE)
    def send_certificate(self, user_id: str, amount: int) -> str:
        """Give a customer a travel certificate as a compensation. Be careful: it is money.

        Args:
            user_id: The customer's user id, such as 'sara_doe_496'.
            amount: Dollars.
        """
        methods = self._user(user_id).payment_methods
        for payment_id in _NEW_CERTIFICATE_IDS:
            if payment_id not in methods:
                certificate = Certificate(id=payment_id, amount=amount, source="certificate")
                self.db.users.edit(user_id).payment_methods[payment_id] = certificate
                return f"Certificate {payment_id} added to user {user_id} with amount {amount}."
        raise ValueError("Too many certificates")

    @tool(ToolType.GENERIC)
    def transfer_to_human_agents(self, summary: str) -> str:
        """Hand the customer to a human: only when asked for, or when the policy and the tools cannot solve the problem.

        Args:
            summary: What the customer needs, in a sentence.
        """
        return "Transfer successful"

    @tool(ToolType.WRITE)
    def update_reservation_baggages(
        self, reservation_id: str, total_baggages: int, nonfree_baggages: int, payment_id: str
    ) -> Reservation:
        """Change the checked bags of a reservation. Get an explicit yes from the customer first.

        Args:
            reservation_id: The reservation's id, such as 'ZFA04Y'.
            total_baggages: Number of checked bags after the change.
            nonfree_baggages: How many of them are paid for after the change; each new one costs 50 dollars.
            payment_id: A credit card or gift card in the customer's profile, such as 'gift_card_0000000'.
        """
        reservation = self._reservation(reservation_id)
        self._user(reservation.user_id)
        total_price = 50 * max(0, nonfree_baggages - reservation.nonfree_baggages)
        reservation = self._paid_change(reservation, payment_id, total_price)
        reservation.total_baggages = total_baggages
        reservation.nonfree_baggages = nonfree_baggages
        return reservation

    @tool(ToolType.WRITE)
    def update_reservation_flights(
        self, reservation_id: str, cabin: CabinClass, flights: list[FlightInfo], payment_id: str
    ) -> Reservation:
        """Change the flights or the cabin of a reservation; the price difference is paid or refunded.

        Explain the change and get an explicit yes from the customer first.

        Args:
            reservation_id: The reservation's id, such as 'ZFA04Y'.
            cabin: The cabin of the whole trip after the change.
            flights: Every flight of the trip after the change, those that stay as they are included.
            payment_id: A credit card or gift card in the customer's profile, such as 'gift_card_0000000'.
        """
        flights = _validated(FlightInfo, flights)
        reservation = self._reservation(reservation_id)
        self._user(reservation.user_id)
        total_price = 0
        reserved = []
        for info in flights:
            flight = next((f for f in reservation.flights if _is_kept(f, info, cabin, reservation.cabin)), None)
            if flight is None:
                new = self._flight(info.flight_number)
                status = self._available(info.flight_number, info.date, cabin, len(reservation.passengers))
                flight = _reserved(new, info, status.prices[cabin])
            total_price += flight.price * len(reservation.passengers)
            reserved.append(flight)
        total_price -= sum(flight.price for flight in reservation.flights) * len(reservation.passengers)
        reservation = self._paid_change(reservation, payment_id, total_price)
        # Upstream leaves the seats of the flights as they are, here and in a cancellation.
        reservation.flights = reserved
        reservation.cabin = cabin
        return reservation

    @tool(ToolType.WRITE)
    def update_reservation_passengers(self, reservation_id: str, passengers: list[Passenger]) -> Reservation:
        """Change who flies; the number of passengers cannot change. Get an explicit yes from the customer first.

        Args:
            reservation_id: The reservation's id, such as 'ZFA04Y'.
            passengers: Everybody who flies after the change.
        """
        passengers = _validated(Passenger, passengers)
        if len(passengers) != len(self._reservation(reservation_id).passengers):
            raise ValueError("Number of passengers does not match")
        reservation = self.db.reservations.edit(reservation_id)
        reservation.passengers = passengers
        return reservation

    @tool(ToolType.READ)
    def get_flight_status(self, flight_number: str, date: str) -> str:
        """Whether a flight on a date is available, on time, delayed, flying, landed or cancelled.

        Args:
            flight_number: The flight number, such as 'HAT001'.
            date: The date, YYYY-MM-DD.
        """
        return self._status(flight_number, date).status

    def _user(self, user_id: str) -> User:
        if user_id not in self.db.users:
            raise ValueError(f"User {user_id} not found")
        return self.db.users[user_id]

    def _reservation(self, reservation_id: str) -> Reservation:
        if reservation_id not in self.db.reservations:
            raise ValueError(f"Reservation {reservation_id} not found")
        return self.db.reservations[reservation_id]

    def _flight(self, flight_number: str) -> Flight:
        if flight_number not in self.db.flights:
            raise ValueError(f"Flight {flight_number} not found")
        return self.db.flights[flight_number]

    def _status(self, flight_number: str, date: str) -> FlightDateStatus:
        flight = self._flight(flight_number)
        if date not in flight.dates:
            raise ValueError(f"Flight {flight_number} not found on date {date}")
        return flight.dates[date]

    def _available(self, flight_number: str, date: str, cabin: CabinClass, seats: int) -> FlightDateStatusAvailable:
        """The flight on that date, with so many seats free in the cabin."""
        status = self._status(flight_number, date)
        if not isinstance(status, FlightDateStatusAvailable):
            raise ValueError(f"Flight {flight_number} not available on date {date}")
        if status.available_seats[cabin] < seats:
            raise ValueError(f"Not enough seats on flight {flight_number}")
        return status

    def _take_seats(self, info: FlightInfo, cabin: CabinClass, seats: int) -> None:
        dates = self.db.flights.edit(info.flight_number).dates
        status = dates[info.date]
        assert isinstance(status, FlightDateStatusAvailable)
        left = {**status.available_seats, cabin: status.available_seats[cabin] - seats}
        dates[info.date] = status.model_copy(update={"available_seats": left})

    def _new_reservation_id(self) -> str:
        for reservation_id in _NEW_RESERVATION_IDS:
            if reservation_id not in self.db.reservations:
                return reservation_id
        raise ValueError("Too many reservations")

    def _paid_change(self, reservation: Reservation, payment_id: str, amount: int) -> Reservation:
        """The reservation to write to, with the price of the change taken and noted."""
        payment = self._charge(reservation.user_id, payment_id, amount)
        reservation = self.db.reservations.edit(reservation.reservation_id)
        if payment is not None:
            reservation.payment_history.append(payment)
        return reservation

    def _charge(self, user_id: str, payment_id: str, amount: int) -> Payment | None:
        """Take the price of a change (a negative one is a refund); None for a change that costs nothing."""
        user = self.db.users[user_id]
        if payment_id not in user.payment_methods:
            raise ValueError("Payment method not found")
        method = user.payment_methods[payment_id]
        if isinstance(method, Certificate):
            raise ValueError("Certificate cannot be used to update reservation")
        if isinstance(method, GiftCard):
            if method.amount < amount:
                raise ValueError("Gift card balance is not enough")
            card = self.db.users.edit(user_id).payment_methods[payment_id]
            assert isinstance(card, GiftCard)
            card.amount -= amount
        return Payment(payment_id=payment_id, amount=amount) if amount != 0 else None

    def _direct_flights(
        self, date: str, origin: str | None, destination: str | None, leave_after: str | None = None, dated: bool = False
    ) -> list[DirectFlight]:
        """Bookable flights of a date, which they show if `dated`; None stands for any airport or time.

        A caller of the tools may say None too.
        """
        if origin is None:
            flights = self.db.flights.rows()
        else:
            flights = self.db.flights.where("origin", lambda flight: flight.origin, origin)
        found = []
        for flight in flights:
            if destination is not None and flight.destination != destination:
                continue
            if date not in flight.dates:
                continue
            status = flight.dates[date]
            if not isinstance(status, FlightDateStatusAvailable):
                continue
            if leave_after is not None and flight.scheduled_departure_time_est < leave_after:
                continue
            found.append(self._shown(flight, date, status, dated))
        return found

    def _shown(self, flight: Flight, date: str, status: FlightDateStatusAvailable, dated: bool) -> DirectFlight:
        """A flight as a search shows it. One that nobody has changed looks the same in every environment."""
        base, key = self.db.flights.base, (flight.flight_number, date, dated)
        unchanged = base.rows.get(flight.flight_number) is flight
        if unchanged and key in base.derived:
            known: DirectFlight = base.derived[key]
            return known
        shown = DirectFlight(
            flight_number=flight.flight_number,
            origin=flight.origin,
            destination=flight.destination,
            status="available",
            scheduled_departure_time_est=flight.scheduled_departure_time_est,
            scheduled_arrival_time_est=flight.scheduled_arrival_time_est,
            date=date if dated else None,
            available_seats=status.available_seats,
            prices=status.prices,
        )
        shown.share()
        if unchanged:
            base.derived[key] = shown
        return shown


def _validated(model: type[BaseModel], values: Any) -> Any:
    """Objects as the model; anything else passes on and fails later, where τ² notices it."""
    return [model(**value) for value in values] if all(isinstance(value, dict) for value in values) else values


def _reserved(flight: Flight, info: FlightInfo, price: int) -> ReservationFlight:
    return ReservationFlight(
        flight_number=info.flight_number, origin=flight.origin, destination=flight.destination, date=info.date, price=price
    )


def _is_kept(flight: ReservationFlight, info: FlightInfo, cabin: str, cabin_before: str) -> bool:
    return flight.flight_number == info.flight_number and flight.date == info.date and cabin == cabin_before
