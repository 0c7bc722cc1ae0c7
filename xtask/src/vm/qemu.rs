//! A machine in QEMU.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::Instant;

use crate::host::SETPRIV;
use crate::process::Child;
use crate::vm::{GuestAgent, PASST, QEMU, VmDisk};

const POLL: Duration = Duration::from_millis(100);
const MEMORY_MIB: u32 = 2048;
/// Runs its arguments again and again. A guest that reboots ends QEMU, and gets a new one: into memory that
/// once held code, the translator writes several times slower, and a boot loader does little else. Each one gets a
/// network that ends with it; some do so by themselves, and some would spin for ever. Of QEMU's own network every
/// packet is small, and an emulated machine pays for each.
const AGAIN: &str = r#"network=$1 socket=$2 log=$3 boot=0
shift 3
while boot=$((boot + 1)) && "$network" --one-off --log-file "$log" --socket "$socket.$boot" \
    --pid "$socket.$boot.pid" --runas 0 --ipv4-only --mtu 65520 --address 10.0.2.15 --netmask 24 \
    --gateway 10.0.2.2 --no-dhcp --tcp-ports none --udp-ports none
do
    "$@" -no-reboot -netdev "stream,id=net,server=off,addr.type=unix,addr.path=$socket.$boot"
    ended=$?
    kill "$(cat "$socket.$boot.pid")" 2>/dev/null
    [ $ended = 0 ] || exit $ended
done"#;

/// A machine with a disk, a serial line and a network of its own, on or off. Dropping it cuts the power.
#[derive(Debug)]
pub struct Vm {
    name: String,
    disk: VmDisk,
    serial: PathBuf,
    directory: PathBuf,
    process: Option<Child>,
    /// How often it was switched on: the network of the time before may not be gone yet.
    starts: u32,
}

impl Vm {
    /// A machine that is off. What comes over its serial line goes to `logs`; what else it needs, such as
    /// sockets, whose paths must be short, to `directory`.
    pub fn new(name: &str, disk: VmDisk, logs: &Path, directory: &Path) -> Result<Self> {
        let serial = logs.join(format!("{name}-serial.log"));
        std::fs::write(&serial, "").with_context(|| format!("cannot create {}", serial.display()))?;
        Ok(Self {
            name: name.to_owned(),
            disk,
            serial,
            directory: directory.to_owned(),
            process: None,
            starts: 0,
        })
    }

    /// Name of its Node.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its disk.
    #[must_use]
    pub fn disk(&self) -> &VmDisk {
        &self.disk
    }

    /// What came over the serial line so far.
    #[must_use]
    pub fn serial(&self) -> String {
        let bytes = std::fs::read(&self.serial).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn is_on(&mut self) -> Result<bool> {
        let Some(process) = &mut self.process else { return Ok(false) };
        Ok(process.exit_status()?.is_none())
    }

    /// What QEMU itself said last, while it runs or after it ended by itself.
    pub(super) fn log_tail(&self) -> String {
        self.process.as_ref().map(Child::log_tail).unwrap_or_default()
    }

    /// Switches it on.
    pub fn power_on(&mut self) -> Result<()> {
        if self.is_on()? {
            bail!("{} is on already", self.name);
        }
        self.starts += 1;
        // QEMU makes it anew.
        let _ = std::fs::remove_file(self.agent_socket());
        let mut command = Command::new("sh");
        command
            .args(["-c", AGAIN, "sh"])
            .arg(PASST.locate()?)
            .arg(self.directory.join(format!("{}-net{}", self.name, self.starts)))
            .arg(self.directory.join(format!("{}-net.log", self.name)))
            .arg(SETPRIV.locate()?)
            .args(["--pdeathsig", "KILL", "--"])
            .arg(QEMU.locate()?)
            .args(["-name", &self.name, "-nodefaults", "-no-user-config", "-display", "none"])
            // One processor: as many machines run at once as this one has, and what two emulated ones have
            // to tell each other costs both of them a fifth of their time.
            .args(["-machine", "q35", "-accel", "tcg", "-cpu", "Nehalem", "-smp", "1"])
            .args(["-m", &MEMORY_MIB.to_string()])
            .arg("-drive")
            // What a guest has flushed is safe from the end of this process in any case; flushing it
            // further, to the medium of the host, would only take time.
            .arg(format!(
                "file={},format=raw,if=virtio,cache=unsafe,discard=unmap",
                self.disk.path().display()
            ))
            .args(["-device", "virtio-net-pci,netdev=net"])
            .arg("-chardev")
            .arg(format!("file,id=serial,append=on,path={}", self.serial.display()))
            .args(["-serial", "chardev:serial", "-device", "virtio-serial-pci", "-chardev"])
            .arg(format!("socket,id=agent,server=on,wait=off,path={}", self.agent_socket().display()))
            .args(["-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"])
            .args(["-device", "virtio-rng-pci"]);
        let log = self.directory.join(format!("{}-qemu.log", self.name));
        self.process = Some(Child::spawn(&format!("QEMU of {}", self.name), command, &log)?);
        Ok(())
    }

    /// Cuts the power: QEMU is killed with SIGKILL, and what the guest had not written is gone.
    pub fn power_cut(&mut self) -> Result<()> {
        let Some(process) = self.process.take() else { bail!("{} is off", self.name) };
        let killed = process.kill().map(drop);
        self.end_networks();
        killed
    }

    /// Ends what was left of the machine's networks when its power was cut.
    fn end_networks(&self) {
        let prefix = format!("{}-net{}.", self.name, self.starts);
        let Ok(files) = std::fs::read_dir(&self.directory) else { return };
        for file in files.flatten() {
            let name = file.file_name().to_string_lossy().into_owned();
            let Some(socket) = name.strip_suffix(".pid").filter(|name| name.starts_with(&prefix)) else {
                continue;
            };
            let id = std::fs::read_to_string(file.path()).unwrap_or_default();
            let command = std::fs::read_to_string(format!("/proc/{}/cmdline", id.trim())).unwrap_or_default();
            // The number may be another process's by now.
            let is_ours = command.contains(socket);
            if let Some(pid) = id.trim().parse().ok().and_then(Pid::from_raw).filter(|_| is_ours) {
                // The only failure is that it is gone already.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }

    /// The agent inside that takes commands. It answers once the machine has booted.
    pub async fn guest(&self, timeout: Duration) -> Result<GuestAgent> {
        let deadline = Instant::now() + timeout;
        loop {
            match GuestAgent::connect(&self.agent_socket()).await {
                Ok(agent) => return Ok(agent),
                Err(error) if Instant::now() > deadline => {
                    return Err(error).with_context(|| {
                        let (name, said) = (&self.name, self.log_tail());
                        format!("the guest agent of {name} did not answer in {timeout:?}; {said}")
                    });
                }
                Err(_) => tokio::time::sleep(POLL).await,
            }
        }
    }

    fn agent_socket(&self) -> PathBuf {
        self.directory.join(format!("{}-agent.sock", self.name))
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // QEMU first, which its network would outlive.
        drop(self.process.take());
        self.end_networks();
    }
}
