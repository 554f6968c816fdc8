"""The rows of the customer's database, field for field as τ²-bench defines them: the phone, and what surrounds it.

The enumerations keep τ²-bench's names, because an answer shows one (`check_vpn_status`) and errors name the others' values.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

from envs.database import Record, Table
from envs.telecom.database import ObjectDatabase, Row


class SimStatus(StrEnum):
    ACTIVE = "active"
    MISSING = "missing"
    LOCKED_PIN = "locked_pin"
    LOCKED_PUK = "locked_puk"


class NetworkTechnology(StrEnum):
    NONE = "none"
    TWO_G = "2G"
    THREE_G = "3G"
    FOUR_G = "4G"
    FIVE_G = "5G"


class NetworkModePreference(StrEnum):
    FOUR_G_5G_PREFERRED = "4g_5g_preferred"
    FOUR_G_ONLY = "4g_only"
    THREE_G_ONLY = "3g_only"
    TWO_G_ONLY = "2g_only"


class SignalStrength(StrEnum):
    NONE = "none"
    POOR = "poor"
    FAIR = "fair"
    GOOD = "good"
    EXCELLENT = "excellent"


class PerformanceLevel(StrEnum):
    UNKNOWN = "unknown"
    POOR = "poor"
    FAIR = "fair"
    GOOD = "good"
    EXCELLENT = "excellent"


class NetworkStatus(StrEnum):
    CONNECTED = "connected"
    SEARCHING = "searching"
    NO_SERVICE = "no_service"
    EMERGENCY_ONLY = "emergency_only"


class APNNames(StrEnum):
    INTERNET = "internet"
    BROKEN = "broken"


class APNSettings(BaseModel):
    """How the phone reaches the carrier's data network, and the server for picture messages (MMSC)."""

    model_config = ConfigDict(extra="forbid")

    apn_name: APNNames = APNNames.INTERNET
    reset_at_reboot: bool = False
    mms_apn: str | None = "mms"
    mmsc_url: str | None = "http://mms.carrier.com/mms/wapenc"
    mms_proxy: str | None = None
    mms_port: int | None = None


class VpnDetails(BaseModel):
    model_config = ConfigDict(extra="forbid")

    server_address: str | None = None
    protocol: str | None = None
    server_performance: PerformanceLevel = PerformanceLevel.UNKNOWN


class AppPermissions(BaseModel):
    model_config = ConfigDict(extra="forbid")

    sms: bool = False
    storage: bool = False
    phone: bool = False
    network: bool = False


class AppStatus(BaseModel):
    model_config = ConfigDict(extra="forbid")

    app_name: str
    permissions: AppPermissions


class Phone(Row):
    sim_card_status: SimStatus = SimStatus.ACTIVE
    sim_card_missing: bool = False
    airplane_mode: bool = False
    network_signal_strength: SignalStrength = SignalStrength.GOOD
    network_technology_connected: NetworkTechnology = NetworkTechnology.FIVE_G
    network_connection_status: NetworkStatus = NetworkStatus.CONNECTED
    battery_level: int = 80
    data_enabled: bool = True
    roaming_enabled: bool = False
    network_mode_preference: NetworkModePreference = NetworkModePreference.FOUR_G_5G_PREFERRED
    active_apn_settings: APNSettings
    wifi_enabled: bool = False
    wifi_connected: bool = False
    wifi_ssid: str | None = None
    wifi_signal_strength: SignalStrength = SignalStrength.NONE
    wifi_calling_enabled: bool = False
    wifi_calling_mms_over_wifi: bool = False
    data_saver_mode: bool = False
    vpn_enabled_setting: bool = False
    vpn_connected: bool = False
    vpn_details: VpnDetails | None = None
    app_statuses: dict[str, AppStatus]

    #: How well the VPN's server works; no part of τ²'s data. Upstream breaks its shared default details, so a VPN that was
    #: broken is slow again when it is connected again.
    vpn_server: PerformanceLevel = Field(PerformanceLevel.EXCELLENT, exclude=True)


class PaymentRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    bill_id: str
    amount_due: float
    paid: bool = False


_SIGNALS = {
    NetworkTechnology.TWO_G: SignalStrength.POOR,
    NetworkTechnology.THREE_G: SignalStrength.FAIR,
    NetworkTechnology.FOUR_G: SignalStrength.GOOD,
    NetworkTechnology.FIVE_G: SignalStrength.EXCELLENT,
}


class Surroundings(Row):
    """Where the customer is, what the network offers there, and what the carrier lets the phone do (set by `sync`)."""

    name: str | None = None
    phone_number: str | None = None
    is_abroad: bool = False
    roaming_allowed: bool = False
    signal_strength: dict[NetworkTechnology, SignalStrength] = Field(default_factory=lambda: dict(_SIGNALS))
    mobile_data_usage_exceeded: bool = False
    line_active: bool = True
    payment_request: PaymentRequest | None = None


class PhoneDatabase(ObjectDatabase):
    tables: ClassVar[Mapping[str, type[Record]]] = {"device": Phone, "surroundings": Surroundings}

    device: Table[Phone]
    surroundings: Table[Surroundings]
