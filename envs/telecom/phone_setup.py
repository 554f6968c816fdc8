"""What τ²-bench's tasks call on the phone before an episode, to break it, and after it, to check it. None of it is a tool."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from envs.telecom.phone import APNNames, NetworkStatus, PerformanceLevel, SimStatus
from envs.telecom.phone_state import PhoneState
from envs.toolkit import helper


class PhoneSetup(PhoneState):
    """Names, arguments and answers are upstream's."""

    @helper
    def set_user_info(self, name: str, phone_number: str) -> None:
        around = self.change_surroundings()
        around.name = name
        around.phone_number = phone_number

    @helper
    def set_user_location(self, abroad: bool) -> None:
        self.change_surroundings().is_abroad = abroad

    @helper
    def turn_airplane_mode_on(self) -> str:
        _turn(self.toggle_airplane, on=True)
        return "Airplane Mode is now ON."

    @helper
    def turn_airplane_mode_off(self) -> str:
        _turn(self.toggle_airplane, on=False)
        return "Airplane Mode is now OFF."

    @helper
    def unseat_sim_card(self) -> str:
        self.change_phone().sim_card_missing = True
        self.simulate_network_search()
        return "SIM card un-seated successfully."

    @helper
    def lock_sim_card(self, mode: Literal["pin", "puk"]) -> str:
        """No tool unlocks it."""
        if mode == "pin":
            self.change_phone().sim_card_status = SimStatus.LOCKED_PIN
        elif mode == "puk":
            self.change_phone().sim_card_status = SimStatus.LOCKED_PUK
        self.simulate_network_search()
        return f"SIM card locked successfully in {mode} mode."

    @helper
    def turn_data_on(self) -> str:
        self.change_phone().data_enabled = True
        return "Data connection restored."

    @helper
    def turn_data_off(self) -> str:
        _turn(self.toggle_mobile_data, on=False)
        return "Data connection broken."

    @helper
    def turn_roaming_on(self) -> str:
        _turn(self.toggle_data_roaming, on=True)
        return "Data Roaming is now ON."

    @helper
    def turn_roaming_off(self) -> str:
        _turn(self.toggle_data_roaming, on=False)
        return "Data Roaming is now OFF."

    @helper
    def turn_data_saver_mode_on(self) -> str:
        _turn(self.toggle_saver, on=True)
        return "Data Saver Mode is now ON."

    @helper
    def turn_data_saver_mode_off(self) -> str:
        _turn(self.toggle_saver, on=False)
        return "Data Saver Mode is now OFF."

    @helper
    def break_apn_settings(self) -> str:
        self.change_apn().apn_name = APNNames.BROKEN
        self.simulate_network_search()
        return "APN settings broken. Please call reset_apn_settings() to fix."

    @helper
    def break_apn_mms_setting(self) -> str:
        self.change_apn().mmsc_url = None
        return "APN MMS setting broken. Please call reset_apn_settings() to fix."

    @helper
    def set_wifi_calling(self, enabled: bool, mms_over_wifi: bool | None = None) -> str:
        phone = self.change_phone()
        if phone.wifi_calling_enabled != enabled:
            phone.wifi_calling_enabled = not phone.wifi_calling_enabled
        told = f"Wi-Fi Calling is now {'ON' if enabled else 'OFF'}."
        if mms_over_wifi is not None:
            phone.wifi_calling_mms_over_wifi = mms_over_wifi
            told += f"\nMMS over Wi-Fi is now {'ON' if mms_over_wifi else 'OFF'}."
        return told

    @helper
    def break_vpn(self) -> str:
        """Connected, but slow."""
        self.start_vpn()
        phone = self.change_phone()
        phone.vpn_server = PerformanceLevel.POOR
        if phone.vpn_details is not None:
            phone.vpn_details = phone.vpn_details.model_copy(update={"server_performance": PerformanceLevel.POOR})
        return "VPN connection broken."

    @helper
    def remove_app_permission(self, app_name: str, permission: str) -> tuple[bool, str]:
        app = self.phone.app_statuses.get(app_name)
        permission = permission.lower()
        if app is None:
            return False, f"App '{app_name}' not found. Cannot remove permission."
        if permission not in type(app.permissions).model_fields:
            return False, f"Permission '{permission}' not tracked for app '{app_name}'."
        setattr(self.change_permissions(app_name), permission, False)
        return True, f"Permission '{permission}' removed from app '{app_name}'."

    @helper
    def assert_airplane_mode_status(self, expected_status: bool) -> bool:
        return self.phone.airplane_mode == expected_status

    @helper
    def assert_service_status(self, expected_status: str) -> bool:
        return self.phone.network_connection_status == NetworkStatus(expected_status)

    @helper
    def assert_mobile_data_status(self, expected_status: bool) -> bool:
        return self.data_works() == expected_status

    @helper
    def assert_mobile_roaming_status(self, expected_status: bool) -> bool:
        return self.phone.roaming_enabled == expected_status

    @helper
    def assert_mobile_data_saver_mode_status(self, expected_status: bool) -> bool:
        return self.phone.data_saver_mode == expected_status

    @helper
    def assert_internet_speed(self, expected_speed: float, expected_desc: str | None = None) -> bool:
        mbps, words = self.speed()
        fast = (mbps or 0.0) >= expected_speed
        return fast if expected_desc is None else fast and words.lower() == expected_desc.lower()

    @helper
    def assert_internet_not_excellent(self) -> bool:
        return self.speed()[1].lower() != "excellent"

    @helper
    def assert_can_send_mms(self, expected_status: bool) -> bool:
        return self.mms_works() == expected_status

    @helper
    def assert_mobile_data_usage_exceeded(self, expected_status: bool) -> bool:
        return self.surroundings.mobile_data_usage_exceeded == expected_status


def _turn(toggle: Callable[[], bool], on: bool) -> None:
    """Toggle until the switch is where it should be: twice, with all that this does, if it already was."""
    if toggle() is not on:
        toggle()
