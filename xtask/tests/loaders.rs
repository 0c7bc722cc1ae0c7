//! Boot loaders: their own tools read what we write, we read what they write, and the real loaders
//! run our scripts.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod loaders {
    mod bootctl;
    mod gpt_tools;
    mod grub;
    mod grub_editenv;
    mod grub_machine;
    mod sd_boot;
    mod sd_boot_machine;
    mod teller;
    mod tiny_kernel;
    mod tools;
    mod uboot;
    mod uboot_tools;
}
