"""How the phone behaves: what its settings, its SIM card and its surroundings do to the network.

Nothing here is a tool; `TelecomUserTools` builds its tools on these. Writes happen in τ²-bench's order, because a call that
fails half-way leaves what it had written.
"""

from __future__ import annotations

from typing import Any

from envs.database import copied
from envs.telecom.database import ONLY
from envs.telecom.phone import (
    APNNames,
    APNSettings,
    AppPermissions,
    NetworkModePreference,
    NetworkStatus,
    NetworkTechnology,
    PerformanceLevel,
    Phone,
    PhoneDatabase,
    SignalStrength,
    SimStatus,
    Surroundings,
    VpnDetails,
)
from envs.toolkit import ToolKit, helper

#: The network that a preference searches for; 5G falls back to 4G where there is none.
_SEARCHED: dict[Any, NetworkTechnology] = {
    NetworkModePreference.FOUR_G_5G_PREFERRED: NetworkTechnology.FIVE_G,
    NetworkModePreference.THREE_G_ONLY: NetworkTechnology.THREE_G,
    NetworkModePreference.TWO_G_ONLY: NetworkTechnology.TWO_G,
}
_SIGNAL_ICONS: dict[Any, str] = {
    SignalStrength.POOR: "📶¹ Poor",
    SignalStrength.FAIR: "📶² Fair",
    SignalStrength.GOOD: "📶³ Good",
    SignalStrength.EXCELLENT: "📶⁴ Excellent",
}
#: Mbps with full signal, the middle of upstream's ranges.
_SPEEDS: dict[Any, float] = {
    NetworkTechnology.TWO_G: (0.1 + 0.4) / 2.0,
    NetworkTechnology.THREE_G: (1.0 + 5.0) / 2.0,
    NetworkTechnology.FOUR_G: (10.0 + 100.0) / 2.0,
    NetworkTechnology.FIVE_G: (50.0 + 500.0) / 2.0,
}
_SIGNAL_FACTORS: dict[Any, float] = {
    SignalStrength.POOR: 0.2,
    SignalStrength.FAIR: 0.5,
    SignalStrength.GOOD: 0.8,
    SignalStrength.EXCELLENT: 1.0,
}


class PhoneState(ToolKit):
    db: PhoneDatabase

    @property
    def phone(self) -> Phone:
        """The phone as it is. For reading."""
        return self.db.device[ONLY]

    @property
    def surroundings(self) -> Surroundings:
        """What surrounds the phone. For reading."""
        return self.db.surroundings[ONLY]

    def change_phone(self) -> Phone:
        """The phone, to be written."""
        return self.db.device.edit(ONLY)

    def change_surroundings(self) -> Surroundings:
        """The surroundings, to be written."""
        return self.db.surroundings.edit(ONLY)

    def change_apn(self) -> APNSettings:
        """The APN settings, to be written."""
        phone = self.change_phone()
        phone.active_apn_settings = copied(phone.active_apn_settings)
        return phone.active_apn_settings

    def change_permissions(self, app_name: str) -> AppPermissions:
        """The permissions of an app that is there, to be written."""
        phone = self.change_phone()
        phone.app_statuses = copied(phone.app_statuses)
        return phone.app_statuses[app_name].permissions

    def sim_status(self) -> SimStatus:
        return SimStatus.MISSING if self.phone.sim_card_missing else self.phone.sim_card_status

    def status_bar(self) -> str:
        """The icons at the top of the screen."""
        phone = self.phone
        if phone.airplane_mode:
            icons = ["✈️ Airplane Mode"]
        else:
            icons = [_SIGNAL_ICONS.get(phone.network_signal_strength, "📵 No Signal")]
            connected = phone.network_technology_connected != NetworkTechnology.NONE
            if connected:
                icons.append(phone.network_technology_connected.value)
            icons.append("📱 Data Enabled" if phone.data_enabled and connected else "📵 Data Disabled")
            if phone.data_enabled and connected and phone.data_saver_mode:
                icons.append("🔽 Data Saver")
        if phone.wifi_enabled and phone.wifi_connected:
            icons.append(f"📡 Connected to {phone.wifi_ssid}" if phone.wifi_ssid else "📡 Enabled")
        if phone.vpn_connected:
            icons.append("🔒 VPN Connected")
        icons.append(f"🔋 {phone.battery_level}%")
        return " | ".join(icons)

    def data_works(self) -> bool:
        """Whether mobile data gets through."""
        phone, around = self.phone, self.surroundings
        if phone.airplane_mode or phone.network_signal_strength == SignalStrength.NONE:
            return False
        if phone.network_connection_status == NetworkStatus.NO_SERVICE:
            return False
        if around.is_abroad and not (phone.roaming_enabled and around.roaming_allowed):
            return False
        return bool(phone.data_enabled and not around.mobile_data_usage_exceeded)

    def mms_works(self) -> bool:
        """Whether a picture message can be sent. It needs mobile data even on Wi-Fi."""
        phone = self.phone
        if not self.data_works() or phone.network_technology_connected == NetworkTechnology.TWO_G:
            return False
        if phone.wifi_calling_enabled and phone.wifi_calling_mms_over_wifi:  # the carrier has no MMS over Wi-Fi
            return False
        if phone.active_apn_settings.mmsc_url is None:
            return False
        messaging = phone.app_statuses.get("messaging")
        return messaging is not None and messaging.permissions.storage and messaging.permissions.sms

    def speed(self) -> tuple[float | None, str]:
        """Mobile data's speed in Mbps and in words; no number without a connection."""
        if not self.data_works():
            return None, "No Connection"
        phone = self.phone
        slow_vpn = phone.vpn_connected and phone.vpn_details and phone.vpn_details.server_performance == PerformanceLevel.POOR
        factor = 0.1 if slow_vpn else 1.0
        if phone.data_saver_mode:
            factor *= 0.2
        full_mbps = _SPEEDS.get(phone.network_technology_connected, 0.0)
        mbps = round(full_mbps * _SIGNAL_FACTORS.get(phone.network_signal_strength, 0.0) * factor, 2)
        for limit_mbps, words in ((1, "Very Poor"), (5, "Poor"), (25, "Fair"), (100, "Good")):
            if mbps < limit_mbps:
                return mbps, words
        return mbps, "Excellent"

    @helper
    def simulate_network_search(self) -> None:
        """Find the network again: what the SIM card, the preference and the place allow."""
        phone, around = self.change_phone(), self.surroundings
        if self.sim_status() == SimStatus.ACTIVE:
            phone.network_connection_status = NetworkStatus.CONNECTED
            technology = _SEARCHED.get(_hashable(phone.network_mode_preference), NetworkTechnology.FOUR_G)
            signal = around.signal_strength.get(technology, SignalStrength.NONE)
            if technology == NetworkTechnology.FIVE_G and signal == SignalStrength.NONE:
                technology = NetworkTechnology.FOUR_G
                signal = around.signal_strength.get(technology, SignalStrength.NONE)
            phone.network_technology_connected = technology
            phone.network_signal_strength = signal
        else:
            _lose_network(phone)
        if phone.airplane_mode:
            _lose_network(phone)
        if phone.active_apn_settings.apn_name == APNNames.BROKEN:
            _lose_network(phone)
        if not around.line_active:
            _lose_network(phone)

    def toggle_airplane(self) -> bool:
        """The new state. Both ways Wi-Fi is lost; on also ends the VPN."""
        phone = self.change_phone()
        was_on = phone.airplane_mode
        phone.airplane_mode = not was_on
        if was_on:
            phone.network_connection_status = NetworkStatus.SEARCHING
        if not was_on or phone.wifi_enabled:
            self.lose_wifi()
        if not was_on:
            self.end_vpn()
        self.simulate_network_search()
        return phone.airplane_mode

    def lose_wifi(self) -> None:
        phone = self.change_phone()
        phone.wifi_connected = False
        phone.wifi_ssid = None
        phone.wifi_signal_strength = SignalStrength.NONE

    def toggle_mobile_data(self) -> bool:
        phone = self.change_phone()
        phone.data_enabled = not phone.data_enabled
        self.simulate_network_search()
        return phone.data_enabled

    def toggle_data_roaming(self) -> bool:
        phone = self.change_phone()
        phone.roaming_enabled = not phone.roaming_enabled
        self.simulate_network_search()
        return phone.roaming_enabled

    def toggle_saver(self) -> bool:
        phone = self.change_phone()
        phone.data_saver_mode = not phone.data_saver_mode
        return phone.data_saver_mode

    def start_vpn(self) -> bool:
        """Whether there was none; it always succeeds."""
        if self.phone.vpn_connected:
            return False
        phone = self.change_phone()
        phone.vpn_connected = True
        phone.vpn_details = VpnDetails(server_address="192.168.1.1", protocol="OpenVPN", server_performance=phone.vpn_server)
        return True

    def end_vpn(self) -> bool:
        """Whether there was one."""
        if not self.phone.vpn_connected:
            return False
        phone = self.change_phone()
        phone.vpn_connected = False
        phone.vpn_details = None
        return True


def _lose_network(phone: Phone) -> None:
    phone.network_connection_status = NetworkStatus.NO_SERVICE
    phone.network_technology_connected = NetworkTechnology.NONE
    phone.network_signal_strength = SignalStrength.NONE


def _hashable(preference: Any) -> Any:
    """`set_network_mode_preference` lets any value in; one that cannot be looked up is no known preference."""
    return preference if isinstance(preference, str) else None
