"""The thirty tools of the customer: what can be looked at and changed on the phone.

They answer what τ²-bench v1.0.1 answers (`domains/telecom/user_tools.py`). Most changes answer with the new status bar too.
"""

from __future__ import annotations

from typing import Any

from envs.telecom.phone import APNSettings, AppPermissions, NetworkModePreference, NetworkStatus, SimStatus
from envs.telecom.phone_setup import PhoneSetup
from envs.toolkit import ToolType, tool

_ADVICE = {
    "Very Poor": "Connection is very slow. Basic web browsing might be difficult.",
    "Poor": "Connection is slow. Web browsing may be sluggish, streaming difficult.",
    "Fair": "Connection is okay for web browsing and some standard definition streaming.",
    "Good": "Connection is good for most activities, including HD streaming.",
    "Excellent": "Connection is very fast.",
}
_SIM = {
    SimStatus.ACTIVE: "Your SIM card is active and working.",
    SimStatus.MISSING: "No SIM card detected in the phone.",
    SimStatus.LOCKED_PIN: "The SIM card is locked with a PIN code.",
    SimStatus.LOCKED_PUK: "The SIM card is locked with a PUK code.",
}


class TelecomUserTools(PhoneSetup):
    """The class keeps upstream's name: Python's messages for wrong arguments contain it."""

    @tool(ToolType.READ)
    def check_status_bar(self) -> str:
        """Look at the icons at the top of the screen: signal, network, mobile data, Data Saver, Wi-Fi, VPN and battery."""
        return f"Status Bar: {self.status_bar()}"

    @tool(ToolType.READ)
    def check_network_status(self) -> str:
        """See how the phone is connected: airplane mode, SIM card, signal, network type, mobile data, data roaming, Wi-Fi."""
        phone = self.phone
        lines = [
            f"Airplane Mode: {_on(phone.airplane_mode)}",
            f"SIM Card Status: {self.sim_status().value}",
            f"Cellular Connection: {phone.network_connection_status.value}",
            f"Cellular Signal: {phone.network_signal_strength.value}",
            f"Cellular Network Type: {phone.network_technology_connected.value}",
            f"Mobile Data Enabled: {_yes(phone.data_enabled)}",
            f"Data Roaming Enabled: {_yes(phone.roaming_enabled)}",
            f"Wi-Fi Radio: {_on(phone.wifi_enabled)}",
            f"Wi-Fi Connected: {_yes(phone.wifi_connected)}",
        ]
        if phone.wifi_connected:
            lines.append(f"Connected Wi-Fi Network: {phone.wifi_ssid}")
        return "\n".join(lines)

    @tool(ToolType.READ)
    def check_network_mode_preference(self) -> str:
        """See which kind of cellular network the phone prefers."""
        return f"Network Mode Preference: {self.phone.network_mode_preference.value}"

    @tool(ToolType.WRITE)
    def set_network_mode_preference(self, mode: NetworkModePreference) -> str:
        """Choose which kind of cellular network the phone prefers. 4G and 5G are the fast ones.

        Args:
            mode: '4g_5g_preferred', '4g_only', '3g_only' or '2g_only'.
        """
        wanted: Any
        try:
            wanted = NetworkModePreference(mode) if isinstance(mode, str) else mode
        except ValueError:
            wanted = None
        else:  # what is not a string is not checked, as upstream
            self.change_phone().network_mode_preference = wanted
            self.simulate_network_search()
        if wanted is None:
            modes = ", ".join(known.value for known in NetworkModePreference)
            return self._with_bar(f"Failed to set network mode: '{mode}' is not a valid option. Please use one of: {modes}")
        return self._with_bar(f"Preferred Network Mode set to: {wanted.value}")

    @tool(ToolType.READ)
    def run_speed_test(self) -> str:
        """Measure how fast mobile data is, and learn what that is good for."""
        mbps, words = self.speed()
        if mbps is None:
            return f"Speed test failed: {words}."
        return f"Speed Test Result: {mbps:.2f} Mbps ({words}). {_ADVICE[words]}"

    @tool(ToolType.WRITE)
    def toggle_airplane_mode(self) -> str:
        """Turn Airplane Mode on if it is off, and off if it is on. On, it cuts all radio connections."""
        return self._with_bar(f"Airplane Mode is now {_on(self.toggle_airplane())}.")

    @tool(ToolType.READ)
    def check_sim_status(self) -> str:
        """See whether the SIM card works, is missing, or is locked with a PIN or PUK code."""
        return _SIM[self.sim_status()]

    @tool(ToolType.WRITE)
    def reseat_sim_card(self) -> str:
        """Take the SIM card out and put it in again, which helps when the phone does not see it."""
        self.change_phone().sim_card_missing = False
        self.simulate_network_search()
        return self._with_bar("SIM card re-seated successfully.")

    @tool(ToolType.WRITE)
    def toggle_data(self) -> str:
        """Turn mobile data on if it is off, and off if it is on. Without Wi-Fi the phone needs it for the internet."""
        return self._with_bar(f"Mobile Data is now {_on(self.toggle_mobile_data())}.")

    @tool(ToolType.WRITE)
    def toggle_roaming(self) -> str:
        """Turn data roaming on if it is off, and off if it is on. It is needed for mobile data abroad."""
        return self._with_bar(f"Data Roaming is now {_on(self.toggle_data_roaming())}.")

    @tool(ToolType.READ)
    def check_data_restriction_status(self) -> str:
        """See whether Data Saver limits the use of data."""
        return "Data Saver mode is ON (limits data usage)." if self.phone.data_saver_mode else "Data Saver mode is OFF."

    @tool(ToolType.WRITE)
    def toggle_data_saver_mode(self) -> str:
        """Turn Data Saver on if it is off, and off if it is on. It saves data and makes it slower."""
        return self._with_bar(f"Data Saver Mode is now {_on(self.toggle_saver())}.")

    @tool(ToolType.READ)
    def check_apn_settings(self) -> str:
        """See the APN settings, with which the phone reaches the carrier's data network: APN name and MMSC URL."""
        settings = self.phone.active_apn_settings.model_copy()  # what is no APN settings fails here in upstream's words
        return (
            f"Current APN Name: {settings.apn_name.value or 'Not Set'}\n"
            f"MMSC URL (for picture messages): {settings.mmsc_url or 'Not Set'}\n"
            "(These are technical settings, usually best left unchanged.)"
        )

    @tool(ToolType.WRITE)
    def set_apn_settings(self, apn_settings: APNSettings | dict[str, Any]) -> str:
        """Write the APN settings, with which the phone reaches the carrier's data network.

        Args:
            apn_settings: The settings; what is left out gets its default.
        """
        settings: Any = APNSettings(**apn_settings) if isinstance(apn_settings, dict) else apn_settings
        self.change_phone().active_apn_settings = settings
        told = f"APN settings set to: {settings.apn_name.value}"
        self.simulate_network_search()
        return self._with_bar(told)

    @tool(ToolType.WRITE)
    def reset_apn_settings(self) -> str:
        """Have the APN settings go back to the default at the next restart."""
        self.change_apn().reset_at_reboot = True
        self.simulate_network_search()
        return self._with_bar("APN settings will reset at reboot.")

    @tool(ToolType.READ)
    def check_wifi_status(self) -> str:
        """See whether Wi-Fi is on, which network it is connected to, and how good the signal is."""
        phone = self.phone
        if not phone.wifi_enabled:
            return "Wi-Fi is turned OFF."
        if not phone.wifi_connected:
            return "Wi-Fi is ON but not connected to any network."
        return f"Wi-Fi is ON and connected to '{phone.wifi_ssid}'. Signal strength: {phone.wifi_signal_strength.value}."

    @tool(ToolType.WRITE)
    def toggle_wifi(self) -> str:
        """Turn Wi-Fi on if it is off, and off if it is on. Not possible in Airplane Mode."""
        if self.phone.airplane_mode:
            return self._with_bar("Cannot change Wi-Fi settings while Airplane Mode is ON.")
        phone = self.change_phone()
        phone.wifi_enabled = not phone.wifi_enabled
        if not phone.wifi_enabled:
            self.lose_wifi()
        return self._with_bar(f"Wi-Fi is now {_on(phone.wifi_enabled)}.")

    @tool(ToolType.READ)
    def check_wifi_calling_status(self) -> str:
        """See whether Wi-Fi Calling is on: calls over Wi-Fi instead of the cellular network."""
        return f"Wi-Fi Calling is currently turned {_on(self.phone.wifi_calling_enabled)}."

    @tool(ToolType.WRITE)
    def toggle_wifi_calling(self) -> str:
        """Turn Wi-Fi Calling on if it is off, and off if it is on. It helps where the cellular signal is weak."""
        phone = self.change_phone()
        phone.wifi_calling_enabled = not phone.wifi_calling_enabled
        return self._with_bar(f"Wi-Fi Calling is now {_on(phone.wifi_calling_enabled)}.")

    @tool(ToolType.READ)
    def check_vpn_status(self) -> str:
        """See whether a VPN is on and connected, and its details."""
        phone = self.phone
        if not phone.vpn_connected:
            set_up = phone.vpn_enabled_setting
            return "VPN is turned ON in settings, but currently not connected." if set_up else "VPN is turned OFF."
        if not phone.vpn_details:
            return "VPN is ON and connected (no specific details available)."
        return f"VPN is ON and connected. Details: {phone.vpn_details.model_dump()}"

    @tool(ToolType.WRITE)
    def connect_vpn(self) -> str:
        """Connect to the VPN."""
        return self._with_bar("VPN connected successfully.") if self.start_vpn() else "VPN already connected."

    @tool(ToolType.WRITE)
    def disconnect_vpn(self) -> str:
        """End the VPN connection, which may be slow or keep some content away."""
        ended = self.end_vpn()
        return self._with_bar("VPN disconnected successfully." if ended else "No active VPN connection to disconnect.")

    @tool(ToolType.READ)
    def check_installed_apps(self) -> str:
        """See the names of all apps on the phone."""
        return f"The following apps are installed on the phone: {', '.join(self.phone.app_statuses)}"

    @tool(ToolType.READ)
    def check_app_status(self, app_name: str) -> str:
        """See all about an app; on this phone that is its permissions.

        Args:
            app_name: The app's name, such as 'messaging'.
        """
        granted = self._granted(app_name)
        if granted is None:
            return _no_app(app_name)
        lines = [" - Permissions Granted:", *(f"   - {name}" for name in granted)]
        return "\n".join([f"Status for App: {app_name}", *(lines if granted else [" - Permissions: None granted."])])

    @tool(ToolType.READ)
    def check_app_permissions(self, app_name: str) -> str:
        """See what an app may use.

        Args:
            app_name: The app's name, such as 'messaging'.
        """
        granted = self._granted(app_name)
        if granted is None:
            return _no_app(app_name)
        if not granted:
            return f"App '{app_name}' currently has no permissions granted."
        return f"App '{app_name}' has permission for: {', '.join(granted)}."

    @tool(ToolType.WRITE)
    def grant_app_permission(self, app_name: str, permission: str) -> str:
        """Let an app use something.

        Args:
            app_name: The app's name, such as 'messaging'.
            permission: In lower case: 'sms', 'storage', 'phone' or 'network'.
        """
        app = self.phone.app_statuses.get(app_name)
        permission = permission.lower()
        if app is None:
            return self._with_bar(f"Error. App '{app_name}' not found. Cannot grant permission.")
        known = list(AppPermissions.model_fields)
        if permission not in known:
            told = f"Error. Permission '{permission}' not tracked for app '{app_name}', available permissions: {known}"
            return self._with_bar(told)
        setattr(self.change_permissions(app_name), permission, True)
        return self._with_bar(f"Success. Permission '{permission}' granted to app '{app_name}'.")

    @tool(ToolType.READ)
    def can_send_mms(self) -> str:
        """Try whether the messaging app can send picture messages (MMS)."""
        return f"Your messaging app {'can' if self.mms_works() else 'cannot'} send MMS messages."

    @tool(ToolType.WRITE)
    def reboot_device(self) -> str:
        """Restart the phone. A reset of the APN settings takes place now."""
        phone = self.change_phone()
        told = "Restarting network services..."
        if phone.active_apn_settings.reset_at_reboot:
            phone.active_apn_settings = APNSettings()
            told = f"Resetting APN settings...\n{told}"
        phone.network_connection_status = NetworkStatus.SEARCHING
        self.simulate_network_search()
        return self._with_bar(told)

    @tool(ToolType.READ)
    def check_payment_request(self) -> str:
        """See whether the agent has asked for a payment, and for which bill."""
        request = self.surroundings.payment_request
        if request is None:
            return "No payment request has been made."
        return f"You have a payment request for bill {request.bill_id} of {request.amount_due} USD."

    @tool(ToolType.WRITE)
    def make_payment(self) -> str:
        """Pay the bill that the agent has asked to be paid."""
        request = self.surroundings.payment_request
        if request is None:
            return "You do not have a payment request."
        self.change_surroundings().payment_request = request.model_copy(update={"paid": True})
        return f"Payment of {request.amount_due} USD has been made for bill {request.bill_id}."

    def _granted(self, app_name: str) -> list[str] | None:
        """What the app may use, in words; None for an app that is not on the phone."""
        app = self.phone.app_statuses.get(app_name)
        return None if app is None else [name.replace("_", " ").lower() for name, allowed in app.permissions if allowed]

    def _with_bar(self, told: str) -> str:
        return f"{told}\nStatus Bar: {self.status_bar()}"


def _no_app(name: str) -> str:
    return f"App '{name}' not found on this phone."


def _on(state: bool) -> str:
    return "ON" if state else "OFF"


def _yes(state: bool) -> str:
    return "Yes" if state else "No"
