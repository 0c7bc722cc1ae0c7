//! A "kernel" of 60 bytes: it tells its command line on the first serial line, then resets.

/// i386, entered in protected mode with the boot parameters at ESI (Linux 32-bit boot protocol).
const CODE: [&[u8]; 17] = [
    &[0x8B, 0x9E, 0x28, 0x02, 0x00, 0x00], // mov ebx, [esi+0x228]: the command line
    &[0xBA, 0xF8, 0x03, 0x00, 0x00],       // mov edx, 0x3f8: COM1
    &[0x8A, 0x03],                         // next: mov al, [ebx]
    &[0x84, 0xC0],                         // test al, al
    &[0x74, 0x04],                         // jz told
    &[0xEE],                               // out dx, al
    &[0x43],                               // inc ebx
    &[0xEB, 0xF6],                         // jmp next
    &[0x83, 0xBE, 0x1C, 0x02, 0x00, 0x00, 0x00], // told: cmp dword [esi+0x21c], 0: the initrd's size
    &[0xB0, b'-'],                         // mov al, '-'
    &[0x74, 0x02],                         // jz none
    &[0xB0, b'+'],                         // mov al, '+'
    &[0xEE],                               // none: out dx, al
    &[0xB0, b'\n', 0xEE],                  // mov al, '\n'; out dx, al
    &[0xB0, 0xFE, 0xE6, 0x64],             // mov al, 0xfe; out 0x64, al: reset
    &[0xF4],                               // halt: hlt
    &[0xEB, 0xFD],                         // jmp halt
];

/// The kernel image. Field offsets: Linux, Documentation/arch/x86/boot.rst.
pub(super) fn kernel() -> Vec<u8> {
    let mut image = vec![0; 1024];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1F1, &[1]); // sectors of real-mode code behind the first
    put(0x1F4, &32_u32.to_le_bytes()); // protected-mode code in units of 16 bytes
    put(0x1FE, &0xAA55_u16.to_le_bytes());
    put(0x200, &[0xEB, 0x66]);
    put(0x202, b"HdrS");
    put(0x206, &0x0206_u16.to_le_bytes()); // protocol 2.06
    put(0x211, &[1]); // loaded high
    put(0x214, &0x10_0000_u32.to_le_bytes()); // entered at 1 MiB
    put(0x22C, &0x7FFF_FFFF_u32.to_le_bytes()); // highest address of an initrd
    put(0x238, &2047_u32.to_le_bytes()); // longest command line
    image.extend(CODE.concat());
    image.resize(1024 + 512, 0);
    image
}
