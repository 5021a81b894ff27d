// SPDX-License-Identifier: Apache-2.0
//! Whole `grub.cfg` files as Debian and Ubuntu generate them, and hostile ones.

use proptest::prelude::*;

use super::super::choose;
use crate::choice::Choice;
use crate::error::{BootDiskError, Looked};
use crate::volume::Volume;
use crate::volumes::Volumes;

/// What `grub-mkconfig` of Debian 12 writes, shortened where a thing only repeats.
const DEBIAN: &str = r#"
### BEGIN /etc/grub.d/00_header ###
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="${saved_entry}"
fi

if [ x"${feature_menuentry_id}" = xy ]; then
  menuentry_id_option="--id"
else
  menuentry_id_option=""
fi

export menuentry_id_option

function savedefault {
  if [ -z "${boot_once}" ]; then
    saved_entry="${chosen}"
    save_env saved_entry
  fi
}
function load_video {
  if [ x$feature_all_video_module = xy ]; then
    insmod all_video
  else
    insmod efi_gop
  fi
}

if [ x$feature_default_font_path = xy ] ; then
   font=unicode
else
insmod part_gpt
fi
if loadfont $font ; then
  set gfxmode=auto
  load_video
  insmod gfxterm
fi
terminal_output gfxterm
if [ "${recordfail}" = 1 ] ; then
  set timeout=30
else
  if [ x$feature_timeout_style = xy ] ; then
    set timeout_style=menu
    set timeout=5
  # Fallback normal timeout code in case the timeout_style feature is
  # unavailable.
  else
    set timeout=5
  fi
fi
### BEGIN /etc/grub.d/05_debian_theme ###
set menu_color_normal=cyan/blue
### BEGIN /etc/grub.d/10_linux ###
function gfxmode {
	set gfxpayload="${1}"
}
set linux_gfx_mode=
export linux_gfx_mode
menuentry 'Debian GNU/Linux' --class debian --class gnu-linux --class os $menuentry_id_option 'gnulinux-simple-abcd' {
	load_video
	insmod gzio
	if [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi
	insmod part_gpt
	insmod ext2
	search --no-floppy --fs-uuid --set=root abcd
	echo	'Loading Linux 6.1.0-41-amd64 ...'
	linux	/boot/vmlinuz-6.1.0-41-amd64 root=UUID=abcd ro  quiet console=ttyS0
	echo	'Loading initial ramdisk ...'
	initrd	/boot/initrd.img-6.1.0-41-amd64
}
submenu 'Advanced options for Debian GNU/Linux' $menuentry_id_option 'gnulinux-advanced-abcd' {
	menuentry 'Debian GNU/Linux, with Linux 6.1.0-41-amd64' --class debian $menuentry_id_option 'gnulinux-6.1.0-41-amd64-advanced-abcd' {
		search --no-floppy --fs-uuid --set=root abcd
		linux	/boot/vmlinuz-6.1.0-41-amd64 root=UUID=abcd ro  quiet
		initrd	/boot/initrd.img-6.1.0-41-amd64
	}
	menuentry 'Debian GNU/Linux, with Linux 6.1.0-40-amd64 (recovery mode)' --class debian $menuentry_id_option 'gnulinux-6.1.0-40-amd64-recovery-abcd' {
		search --no-floppy --fs-uuid --set=root abcd
		linux	/boot/vmlinuz-6.1.0-40-amd64 root=UUID=abcd ro single
		initrd	/boot/microcode.img /boot/initrd.img-6.1.0-40-amd64
	}
}
### BEGIN /etc/grub.d/30_uefi-firmware ###
if [ "$grub_platform" = "efi" ]; then
	fwsetup --is-supported
	if [ "$?" = 0 ]; then
		menuentry 'UEFI Firmware Settings' $menuentry_id_option 'uefi-firmware' {
			fwsetup
		}
	fi
fi
### BEGIN /etc/grub.d/41_custom ###
if [ -f  ${config_directory}/custom.cfg ]; then
  source ${config_directory}/custom.cfg
elif [ -z "${config_directory}" -a -f  $prefix/custom.cfg ]; then
  source $prefix/custom.cfg
fi
"#;

fn on(files: &[(&str, &str)]) -> Result<Option<Choice>, BootDiskError> {
    let volumes = vec![
        Volume::in_memory(1, "1234-ABCD", &[("/EFI/BOOT/BOOTX64.EFI", "MZ")]),
        Volume::in_memory(2, "abcd", files),
    ];
    choose(&Volumes::in_memory(volumes), &mut Looked::default())
}

fn debian(grubenv: &str) -> Result<Choice, BootDiskError> {
    let block = format!("# GRUB Environment Block\n{grubenv}\n#####");
    on(&[
        ("/boot/grub/grub.cfg", DEBIAN),
        ("/boot/grub/grubenv", &block),
    ])
    .map(Option::unwrap)
}

fn script(text: &str) -> Result<Option<Choice>, BootDiskError> {
    on(&[("/boot/grub/grub.cfg", text)])
}

fn chosen(text: &str) -> Choice {
    script(text).unwrap().unwrap()
}

fn refusal(text: &str) -> String {
    script(text).unwrap_err().to_string()
}

#[test]
fn debian_boots_the_first_entry() {
    let choice = debian("").unwrap();
    assert_eq!(choice.title, "Debian GNU/Linux");
    assert_eq!(choice.kernel.path, "/boot/vmlinuz-6.1.0-41-amd64");
    assert_eq!(choice.cmdline, "root=UUID=abcd ro quiet console=ttyS0");
    assert_eq!(choice.initrds[0].path, "/boot/initrd.img-6.1.0-41-amd64");
    assert_eq!(choice.initrds[0].volume, choice.kernel.volume);
}

#[test]
fn debian_boots_what_was_saved() {
    for saved in [
        "gnulinux-advanced-abcd>gnulinux-6.1.0-40-amd64-recovery-abcd",
        "1>1",
        "Advanced options for Debian GNU/Linux>Debian GNU/Linux, with Linux 6.1.0-40-amd64 \
         (recovery mode)",
    ] {
        let choice = debian(&format!("saved_entry={saved}")).unwrap();
        assert_eq!(choice.kernel.path, "/boot/vmlinuz-6.1.0-40-amd64");
        assert_eq!(choice.initrds.len(), 2);
        assert!(
            choice
                .title
                .starts_with("Advanced options for Debian GNU/Linux > ")
        );
    }
    // What is gone means the first entry, a submenu without more its first.
    assert_eq!(
        debian("saved_entry=gone").unwrap().title,
        "Debian GNU/Linux"
    );
    let choice = debian("saved_entry=gnulinux-advanced-abcd").unwrap();
    assert_eq!(choice.kernel.path, "/boot/vmlinuz-6.1.0-41-amd64");
    // For one boot only, hence for none.
    assert_eq!(debian("next_entry=1>1").unwrap().title, "Debian GNU/Linux");
}

/// The parts of Ubuntu's that Debian's has not.
const UBUNTU: &str = r#"
set default="0"
function recordfail {
  set recordfail=1
  if [ -n "${have_grubenv}" ]; then if [ -z "${boot_once}" ]; then save_env recordfail; fi; fi
}
function initrdfail {
    if [ -n "${have_grubenv}" ]; then if [ -n "${partuuid}" ]; then
      if [ -z "${initrdfail}" ]; then
        set initrdfail=1
        if [ -n "${boot_once}" ]; then
          set prev_entry="${default}"
          save_env prev_entry
        fi
      fi
      save_env initrdfail
    fi; fi
}
function gfxmode {
	set gfxpayload="${1}"
	if [ "${1}" = "keep" ]; then
		set vt_handoff=vt.handoff=7
	else
		set vt_handoff=
	fi
}
if [ "${recordfail}" != 1 ]; then
  if [ -e ${prefix}/gfxblacklist.txt ]; then
    if [ ${grub_platform} != pc ]; then
      set linux_gfx_mode=keep
    elif hwmatch ${prefix}/gfxblacklist.txt 3; then
      set linux_gfx_mode=text
    else
      set linux_gfx_mode=text
    fi
  else
    set linux_gfx_mode=keep
  fi
else
  set linux_gfx_mode=text
fi
export linux_gfx_mode
menuentry 'Ubuntu' --class ubuntu --class gnu-linux $menuentry_id_option 'gnulinux-simple-abcd' {
	recordfail
	load_video
	gfxmode $linux_gfx_mode
	insmod gzio
	search --no-floppy --fs-uuid --set=root abcd
	if [ "${initrdfail}" = 1 ]; then
	  linux	/vmlinuz-6.8.0-31-generic root=LABEL=x ro recovery
	  initrd	/initrd.img-6.8.0-31-generic
	else
	  linux	/vmlinuz-6.8.0-31-generic root=PARTUUID=x ro  console=tty1 console=ttyS0 $vt_handoff
	fi
	initrdfail
}
"#;

#[test]
fn ubuntus_cloud_image() {
    let choice = on(&[("/grub/grub.cfg", UBUNTU)]).unwrap().unwrap();
    assert_eq!(choice.kernel.path, "/vmlinuz-6.8.0-31-generic");
    assert_eq!(
        choice.cmdline,
        "root=PARTUUID=x ro console=tty1 console=ttyS0 vt.handoff=7"
    );
    assert_eq!(choice.initrds, []);
}

#[test]
fn an_entry_without_linux_is_an_error_not_another_kernel() {
    let text = refusal("menuentry 'UEFI Firmware Settings' { fwsetup }");
    assert!(
        text.contains("\"UEFI Firmware Settings\" says `fwsetup`"),
        "{text}"
    );
    let text = refusal("menuentry a { echo }");
    assert!(
        text.contains("the default entry \"a\" loads no kernel"),
        "{text}"
    );
    assert!(
        text.contains("partition 2 of disk.raw: /boot/grub/grub.cfg"),
        "{text}"
    );
    let text = refusal("menuentry a { chainloader /EFI/x.efi; }");
    assert!(text.contains("`chainloader /EFI/x.efi`"), "{text}");
}

#[test]
fn a_file_on_the_esp_leads_to_the_real_one() {
    let stub = "search.fs_uuid abcd root hd0,gpt2\nset prefix=($root)'/boot/grub'\n\
                configfile $prefix/other.cfg\n";
    let volumes = vec![
        Volume::in_memory(1, "1234-ABCD", &[("/EFI/debian/grub.cfg", stub)]),
        Volume::in_memory(
            2,
            "abcd",
            &[(
                "/boot/grub/other.cfg",
                "menuentry x { linux /k $root $prefix }",
            )],
        ),
    ];
    let choice = choose(&Volumes::in_memory(volumes), &mut Looked::default());
    let choice = choice.unwrap().unwrap();
    assert_eq!(choice.cmdline, "hd0,gpt2 (hd0,gpt2)/boot/grub");
    assert_ne!(choice.kernel.volume, choice.config);
}

#[test]
fn paths_may_name_devices() {
    for path in ["(hd0,gpt1)/k", "(hd0,1)/k"] {
        let choice = chosen(&format!("menuentry x {{ linux {path} }}"));
        assert_ne!(choice.kernel.volume, choice.config, "{path}");
    }
    let text = refusal("menuentry x {\n linux (hd1,gpt1)/k\n}");
    assert!(
        text.contains("line 2: (hd1,gpt1)/k is on a device"),
        "{text}"
    );
    let choice = chosen("search --label --set=root label-1\nmenuentry x { linux /k }");
    assert_ne!(choice.kernel.volume, choice.config);
    let choice = chosen("search -f --set=d /EFI/BOOT/BOOTX64.EFI\nmenuentry x { linux ($d)/k }");
    assert_ne!(choice.kernel.volume, choice.config);
}

#[test]
fn words_are_joined_as_grub_does() {
    let choice = chosen(
        "set a='one  two'\nset e=\nmenuentry x { linux /k $a \"$a\" $e \"b=$e\" c$a 'it''s' }",
    );
    assert_eq!(choice.cmdline, "one two \"one  two\" b= cone two its");
}

#[test]
fn functions_loops_and_returns() {
    let choice = chosen(
        "function f { set r=\"$2-$#\"; return; set r=no }\nf a b\n\
         for i in 1 2 3; do s=\"$s$i\"; done\nwhile true; do set s=never; done\n\
         if false; then set t=1; elif [ $r = b-2 ]; then set t=2; else set t=3; fi\n\
         menuentry x { linux /k $r $s $t }",
    );
    assert_eq!(choice.cmdline, "b-2 123 2");
}

#[test]
fn growth_and_endless_calls_are_refused() {
    let mut bomb = "set a=xxxxxxxxxxxxxxxx\n".to_owned();
    bomb.push_str(&"set a=\"$a$a$a$a\"\n".repeat(40));
    assert!(refusal(&bomb).contains("without limit"));
    assert!(refusal("function f { f; f }\nf\n").contains("too deep"));
    assert!(refusal("source /boot/grub/grub.cfg\n").contains("too deep"));
    assert!(refusal("configfile /boot/grub/grub.cfg\n").contains("too many"));
    let text = refusal(
        "submenu a { submenu b { submenu c { submenu d { submenu e { submenu f { submenu g { submenu h { submenu i { } } } } } } } } }",
    );
    assert!(text.contains("without end"), "{text}");
    let nested = (0..7).fold("echo".to_owned(), |body, level| {
        format!("for v{level} in 1 2 3 4 5 6 7 8 9 10; do {body}; done")
    });
    assert!(refusal(&nested).contains("runs for ever"));
}

#[test]
fn a_syntax_error_is_told_with_its_line() {
    let text = refusal("set a=b\nmenuentry x {\n linux /k\n");
    assert!(text.contains("grub.cfg: line 3: `}` is missing"), "{text}");
}

#[test]
fn a_file_without_entries_is_noted() {
    let volumes = vec![Volume::in_memory(
        0,
        "u",
        &[
            ("/boot/grub/grub.cfg", "set a=b\n"),
            ("/boot/grub/menu.lst", "x"),
        ],
    )];
    let mut looked = Looked::default();
    let choice = choose(&Volumes::in_memory(volumes), &mut looked).unwrap();
    assert_eq!(choice, None);
    let text = looked.to_string();
    assert!(
        text.contains("/boot/grub/grub.cfg on disk.raw: no menu entries"),
        "{text}"
    );
    assert!(text.contains("of the old GRUB"), "{text}");
}

proptest! {
    #[test]
    fn any_script_ends(
        words in prop::collection::vec(
            prop::sample::select(vec![
                "if", "then", "else", "fi", "for", "in", "do", "done", "function", "{", "}", "\n",
                ";", "f", "menuentry", "submenu", "'q'", "$v", "set", "v=$v$v", "default=1>f",
                "linux", "initrd", "/k", "(hd0,gpt1)/k", "configfile", "source", "/a.cfg", "[", "]",
                "=", "-f", "search", "--set=root", "--fs-uuid", "abcd", "load_env", "return",
            ]),
            0..80,
        ),
    ) {
        let text = words.join(" ");
        let _ = on(&[("/boot/grub/grub.cfg", &text), ("/a.cfg", &text)]);
    }

    #[test]
    fn a_changed_file_ends(at in 0usize..3600, with in "[{}$\"'\\\\ a;\n]{1,3}") {
        let mut text = DEBIAN.to_owned();
        let at = at.min(text.len());
        text.insert_str(at, &with);
        let _ = script(&text);
    }
}
