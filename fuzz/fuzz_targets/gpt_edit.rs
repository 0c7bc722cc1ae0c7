#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| monok8s_sdk::fuzzing::gpt_edit(bytes));
