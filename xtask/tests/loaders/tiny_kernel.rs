//! The smallest thing that `booti` takes for a kernel: it tells the device tree that it was given.

/// Reads the tree's length from its head, writes that many bytes to the serial port of QEMU's machine
/// `virt`, and asks its firmware (PSCI) to power off.
const CODE: [u32; 12] = [
    0xD2A1_2009, // movz x9, #0x0900, lsl #16   the port, 0x0900_0000
    0xAA00_03EA, // mov  x10, x0                the tree
    0xB940_040B, // ldr  w11, [x0, #4]          its length, big-endian
    0x5AC0_096B, // rev  w11, w11
    0x3840_154C, // ldrb w12, [x10], #1
    0xB900_012C, // str  w12, [x9]
    0x7100_056B, // subs w11, w11, #1
    0x54FF_FFA1, // b.ne -12
    0x5280_0100, // movz w0, #0x0008            SYSTEM_OFF, 0x8400_0008
    0x72B0_8000, // movk w0, #0x8400, lsl #16
    0xD400_0002, // hvc  #0
    0x1400_0000, // b    .
];

/// The header that Linux documents in `Documentation/arch/arm64/booting.rst`, then the code.
pub(crate) fn image() -> Vec<u8> {
    let mut image = Vec::new();
    // Over the header: b +64.
    image.extend(0x1400_0010_u32.to_le_bytes());
    image.extend([0; 4]);
    let (text_offset, size, flags) = (0_u64, 0x1000_u64, 0b1010_u64);
    image.extend([text_offset, size, flags, 0, 0, 0].into_iter().flat_map(u64::to_le_bytes));
    image.extend(b"ARM\x64\0\0\0\0");
    image.extend(CODE.into_iter().flat_map(u32::to_le_bytes));
    image.resize(0x1000, 0);
    image
}
