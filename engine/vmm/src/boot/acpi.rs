// SPDX-License-Identifier: Apache-2.0
//! The ACPI tables: RSDP, XSDT, FADT, FACS, MADT, MCFG and a DSDT that says how to switch
//! off and where PCI is.
//!
//! They lie in the firmware area below 1 MiB, where a guest that is not told the address finds
//! the RSDP too.

use acpi_tables::aml::{
    AddressSpace as AmlSpace, AddressSpaceCacheable, Device, EISAName, IO, Memory32Fixed, Name,
    Package, Path, ResourceTemplate,
};
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use vm_memory::{Bytes, GuestAddress};

use super::BootError;
use crate::config::VcpuCount;
use crate::devices::{i8042, power};
use crate::pci;
use crate::ram::GuestRam;

/// Where the tables begin; the RSDP is first.
pub(super) const TABLES: u64 = 0xe_0000;

const OEM: [u8; 6] = *b"KEMARI";
const OEM_TABLE: [u8; 8] = *b"KEMARIVM";
const OEM_REVISION: u32 = 1;
const IO_APIC_ADDRESS: u32 = 0xfec0_0000;
const LOCAL_APIC_ADDRESS: u32 = 0xfee0_0000;
/// Length of a table header, and of the MADT's fixed part.
const MADT_FIXED: u32 = 44;
const HEADER: u32 = 36;
/// Legacy devices present, no VGA; no keyboard controller to probe.
const BOOT_ARCHITECTURE: u16 = 1 | 1 << 2;
/// Latencies that say "no C2 and C3".
const NO_SLEEP_STATE: u16 = 0x0fff;
/// CMOS register of the century.
const CENTURY: u8 = 0x32;

/// Writes all tables; returns the RSDP's address.
pub(super) fn write(ram: &GuestRam, vcpus: VcpuCount) -> Result<u64, BootError> {
    let mut area = Area {
        ram,
        // The RSDP is written last, to the start of the area.
        next: TABLES + 64,
    };
    let facs = area.add(&FACS::new())?;
    let dsdt = area.add(&dsdt())?;
    let fadt = area.add(&fadt(dsdt, facs).finalize())?;
    let madt = area.add(&madt(vcpus))?;
    let mut mcfg = MCFG::new(OEM, OEM_TABLE, OEM_REVISION);
    mcfg.add_ecam(u64::from(pci::ECAM_START), 0, 0, 0);
    let mcfg = area.add(&mcfg)?;
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    xsdt.add_entry(mcfg);
    let xsdt = area.add(&xsdt)?;
    area.next = TABLES;
    area.add(&Rsdp::new(OEM, xsdt))
}

struct Area<'a> {
    ram: &'a GuestRam,
    next: u64,
}

impl Area<'_> {
    fn add(&mut self, table: &dyn Aml) -> Result<u64, BootError> {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        let address = self.next;
        self.ram
            .mapping()
            .write_slice(&bytes, GuestAddress(address))?;
        // The FACS needs 64-byte alignment; giving it to all is simplest.
        self.next = (address + bytes.len() as u64).next_multiple_of(64);
        Ok(address)
    }
}

fn dsdt() -> Sdt {
    let off = power::SLEEP_TYPE_OFF;
    let mut code = Vec::new();
    let sink: &mut dyn AmlSink = &mut code;
    Name::new(
        Path::new("_S5_"),
        &Package::new(vec![&off, &off, &0u8, &0u8]),
    )
    .to_aml_bytes(sink);
    host_bridge(sink);
    let mut table = Sdt::new(*b"DSDT", HEADER, 2, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(&code);
    table
}

/// The PCI host bridge, and the memory its configuration space is mapped in (PCI Firmware
/// specification 3.3, section 4.1.2: it must be reserved by a motherboard resource).
fn host_bridge(sink: &mut dyn AmlSink) {
    let window = AmlSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        pci::WINDOW_START,
        pci::WINDOW_END - 1,
        None,
    );
    Device::new(
        Path::new("_SB_.PCI0"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0A08")),
            &Name::new(Path::new("_CID"), &EISAName::new("PNP0A03")),
            &Name::new(Path::new("_SEG"), &0u8),
            &Name::new(Path::new("_BBN"), &0u8),
            &Name::new(Path::new("_UID"), &0u8),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![
                    &AmlSpace::new_bus_number(0u16, 0u16),
                    &IO::new(0xcf8, 0xcf8, 1, 8),
                    &window,
                ]),
            ),
        ],
    )
    .to_aml_bytes(sink);
    Device::new(
        Path::new("_SB_.ECAM"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0C02")),
            &Name::new(Path::new("_UID"), &0u8),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![&Memory32Fixed::new(
                    true,
                    pci::ECAM_START,
                    pci::ECAM_BYTES,
                )]),
            ),
        ],
    )
    .to_aml_bytes(sink);
}

fn fadt(dsdt: u64, facs: u64) -> FADTBuilder {
    let port = |address: u16, bits, size| {
        GAS::new(AddressSpace::SystemIo, bits, 0, size, u64::from(address))
    };
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .firmware_ctrl_32(u32::try_from(facs).unwrap_or(0))
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // The power button is a fixed one; there is no sleep button and no RTC wake-up.
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::ResetRegSup);
    fadt.dsdt = u32::try_from(dsdt).unwrap_or(0).into();
    fadt.sci_int = u16::from(power::SCI_IRQ).into();
    fadt.pm1a_evt_blk = u32::from(power::EVENT_BLOCK).into();
    fadt.pm1_evt_len = power::EVENT_BLOCK_LENGTH;
    fadt.pm1a_cnt_blk = u32::from(power::CONTROL_BLOCK).into();
    fadt.pm1_cnt_len = power::CONTROL_BLOCK_LENGTH;
    fadt.x_pm1a_evt_blk = port(power::EVENT_BLOCK, 32, AccessSize::WordAccess);
    fadt.x_pm1a_cnt_blk = port(power::CONTROL_BLOCK, 16, AccessSize::WordAccess);
    fadt.reset_reg = port(i8042::COMMAND, 8, AccessSize::ByteAccess);
    fadt.reset_value = i8042::RESET_COMMAND;
    fadt.iapc_boot_arch = BOOT_ARCHITECTURE.into();
    fadt.p_lvl2_lat = NO_SLEEP_STATE.into();
    fadt.p_lvl3_lat = NO_SLEEP_STATE.into();
    fadt.century = CENTURY;
    fadt
}

/// A local APIC for each vCPU, one IOAPIC, NMI on LINT1, and the SCI as a level, active high.
fn madt(vcpus: VcpuCount) -> Sdt {
    const ENABLED: u8 = 1;
    const PC_AT_COMPATIBLE: u32 = 1;
    const LEVEL_ACTIVE_HIGH: u8 = 0b1101;
    let mut madt = Sdt::new(*b"APIC", MADT_FIXED, 3, OEM, OEM_TABLE, OEM_REVISION);
    madt.write_u32(36, LOCAL_APIC_ADDRESS);
    madt.write_u32(40, PC_AT_COMPATIBLE);
    for vcpu in vcpus.indexes() {
        // Local APIC: processor and APIC have the same id.
        let id = vcpu.apic_id();
        madt.append_slice(&[0, 8, id, id, ENABLED, 0, 0, 0]);
    }
    let [a, b, c, d] = IO_APIC_ADDRESS.to_le_bytes();
    madt.append_slice(&[1, 12, 0, 0, a, b, c, d, 0, 0, 0, 0]);
    // ISA bus, source and global interrupt 9.
    let sci = power::SCI_IRQ;
    madt.append_slice(&[2, 10, 0, sci, sci, 0, 0, 0, LEVEL_ACTIVE_HIGH, 0]);
    // Local APIC NMI: all processors, default polarity and trigger, LINT1.
    madt.append_slice(&[4, 6, 0xff, 0, 0, 1]);
    madt
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MemorySize;

    fn read(ram: &GuestRam, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        ram.mapping()
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }

    /// A table's bytes, its length and checksum checked.
    fn table(ram: &GuestRam, address: u64) -> Vec<u8> {
        let header = read(ram, address, 8);
        let length = u32::from_le_bytes(header[4..8].try_into().unwrap());
        let bytes = read(ram, address, usize::try_from(length).unwrap());
        assert_eq!(
            bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)),
            0
        );
        bytes
    }

    fn address_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn the_tables_hang_together() {
        let ram = GuestRam::new(MemorySize::from_mib(16).unwrap()).unwrap();
        let rsdp = write(&ram, VcpuCount::new(254).unwrap()).unwrap();
        assert_eq!(rsdp % 16, 0);
        let rsdp = read(&ram, rsdp, 36);
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        let xsdt = table(&ram, address_at(&rsdp, 24));
        assert_eq!(&xsdt[..4], b"XSDT");
        let fadt = table(&ram, address_at(&xsdt, 36));
        assert_eq!(&fadt[..4], b"FACP");
        let madt = table(&ram, address_at(&xsdt, 44));
        assert_eq!(&madt[..4], b"APIC");
        let processors = madt[44..].chunks_exact(8).take(254);
        for (id, entry) in (0u8..).zip(processors) {
            assert_eq!(entry, [0, 8, id, id, 1, 0, 0, 0]);
        }
        let mcfg = table(&ram, address_at(&xsdt, 52));
        assert_eq!(&mcfg[..4], b"MCFG");
        assert_eq!(address_at(&mcfg, 44), u64::from(pci::ECAM_START));
        let dsdt = table(&ram, address_at(&fadt, 140));
        assert_eq!(&dsdt[..4], b"DSDT");
        // Name(_S5_, Package(4) { 5, 5, 0, 0 })
        assert_eq!(dsdt[36..41], *b"\x08_S5_");
        let facs = u32::from_le_bytes(fadt[36..40].try_into().unwrap());
        assert_eq!(facs % 64, 0);
        assert_eq!(&read(&ram, u64::from(facs), 4), b"FACS");
    }
}
