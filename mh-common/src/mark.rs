//! Values in the bits of `skb->mark` that are mh's. The controller's routing rules send marked packets where the name says: so the
//! kernel fragments, and refuses with ICMP, on mh's behalf.

/// No mark: not seen by mh.
pub const NONE: u32 = 0;
/// Mark `FIRST_UPLINK + index`: to be sent, and fragmented or refused as too big, by the uplink with this index. A socket of the
/// machine itself that has it (`SO_MARK`) sends by that uplink, healthy or not, and mh neither follows nor translates its packets.
pub const FIRST_UPLINK: u32 = 1;
/// To be refused: ICMP type 3 code 13, communication administratively prohibited.
pub const PROHIBIT: u32 = 61;
/// To be refused: ICMP type 3 code 0, network unreachable.
pub const UNREACHABLE: u32 = 62;
/// Translated already: to be let through.
pub const DONE: u32 = 63;
/// How many bits the values take.
pub const BITS: u32 = 6;

/// A value as it stands in packets: under the mask of the bits that are mh's.
pub const fn of(value: u32, mask: u32) -> u32 {
    value << mask.trailing_zeros() & mask
}

/// The mark of the uplink with this index, as it stands in packets.
pub const fn of_uplink(index: u8, mask: u32) -> u32 {
    of(FIRST_UPLINK + index as u32, mask)
}
