# The A/B choice of a MonoK8s node, for U-Boot: which slot boots, and one of its tries is burnt.
# Make it a script with: mkimage -A arm64 -T script -C none -d boot.cmd boot.scr
# What it needs of U-Boot, and how to fit it to a board: deploy/host/README.md, "U-Boot".
#
# The state is a redundant environment of its own in a raw partition: two copies, each the CRC-32 of
# its data, a serial number, and the data. It is read and written here and not by U-Boot itself, which
# would take its built-in variables if both copies were damaged. This script then boots nothing.

# What a board may set before this script is sourced.
test -n "${devtype}" || setenv devtype mmc
test -n "${devnum}" || setenv devnum 0
test -n "${monok8s_env_part}" || setenv monok8s_env_part uboot-env
# Bytes of a copy, hexadecimal, a multiple of 0x200.
test -n "${monok8s_env_size}" || setenv monok8s_env_size 4000
# 4 MiB of memory that nothing else is in yet.
test -n "${monok8s_addr}" || setenv monok8s_addr ${kernel_addr_r}
test -n "${monok8s_part_a}" || setenv monok8s_part_a rootfs-a
test -n "${monok8s_part_b}" || setenv monok8s_part_b rootfs-b
test -n "${monok8s_kernel}" || setenv monok8s_kernel /boot/Image
test -n "${monok8s_initrd}" || setenv monok8s_initrd /boot/initrd.img
# A kernel that panics must restart by itself: only then the other slot gets its turn.
test -n "${monok8s_args}" || setenv monok8s_args ro rootwait panic=10
# How the chosen slot is started: slot, m_part (its partition's number) and bootargs are set by then.
test -n "${monok8s_start}" || setenv monok8s_start 'run m_load_dtb; if load ${devtype} ${devnum}:${m_part} ${kernel_addr_r} ${monok8s_kernel}; then if load ${devtype} ${devnum}:${m_part} ${ramdisk_addr_r} ${monok8s_initrd}; then booti ${kernel_addr_r} ${ramdisk_addr_r}:${filesize} ${m_fdt}; else booti ${kernel_addr_r} - ${m_fdt}; fi; fi'
setenv m_load_dtb 'setenv m_fdt ${fdtcontroladdr}; if test -n "${fdtfile}" && load ${devtype} ${devnum}:${m_part} ${fdt_addr_r} /boot/dtb/${fdtfile}; then setenv m_fdt ${fdt_addr_r}; fi'

# Memory: both copies as found, the running environment put aside, the new copy, what is read back.
setexpr m_copy0 ${monok8s_addr} + 0
setexpr m_copy1 ${monok8s_addr} + 100000
setexpr m_aside ${monok8s_addr} + 200000
setexpr m_new ${monok8s_addr} + 300000
setexpr m_data0 ${m_copy0} + 5
setexpr m_data1 ${m_copy1} + 5
setexpr m_new_data ${m_new} + 5
setexpr m_new_serial ${m_new} + 4
setexpr m_serial0 ${m_copy0} + 4
setexpr m_serial1 ${m_copy1} + 4
setexpr m_length ${monok8s_env_size} - 5
setexpr m_blocks ${monok8s_env_size} / 200
# The last two bytes of the data: zero, if the variables fit.
setexpr m_end ${m_new} + ${monok8s_env_size}
setexpr m_end1 ${m_end} - 1
setexpr m_end2 ${m_end} - 2
# Sums: as crc32 leaves one, and as a copy has it.
setexpr m_sum ${monok8s_addr} + 1ffff0
setexpr m_sum1 ${m_sum} + 1
setexpr m_sum2 ${m_sum} + 2
setexpr m_sum3 ${m_sum} + 3
setexpr m_crc ${monok8s_addr} + 1fffe0
setexpr m_crc1 ${m_crc} + 1
setexpr m_crc2 ${m_crc} + 2
setexpr m_crc3 ${m_crc} + 3

# Which way round crc32 leaves a sum depends on how U-Boot was built: that of four zeroes is 2144df1c.
mw.l ${m_crc} 0
crc32 ${m_crc} 4 ${m_sum}
if itest.b *${m_sum} == 21; then
	setenv m_turn 'cp.b ${m_sum3} ${m_crc} 1; cp.b ${m_sum2} ${m_crc1} 1; cp.b ${m_sum1} ${m_crc2} 1; cp.b ${m_sum} ${m_crc3} 1'
else
	setenv m_turn 'cp.b ${m_sum} ${m_crc} 4'
fi

# Which copies are whole, and the newer one of them.
good0=no
good1=no
${devtype} dev ${devnum}
if part start ${devtype} ${devnum} ${monok8s_env_part} m_block0; then
	setexpr m_block1 ${m_block0} + ${m_blocks}
	if ${devtype} read ${m_copy0} ${m_block0} ${m_blocks}; then
		crc32 ${m_data0} ${m_length} ${m_sum}
		run m_turn
		if itest.l *${m_crc} == *${m_copy0}; then good0=yes; fi
	fi
	if ${devtype} read ${m_copy1} ${m_block1} ${m_blocks}; then
		crc32 ${m_data1} ${m_length} ${m_sum}
		run m_turn
		if itest.l *${m_crc} == *${m_copy1}; then good1=yes; fi
	fi
fi
newer=none
if test ${good0} = yes; then newer=0; fi
if test ${good1} = yes; then newer=1; fi
if test ${good0} = yes -a ${good1} = yes; then
	newer=0
	if itest.b *${m_serial1} > *${m_serial0}; then newer=1; fi
	# 0 follows 255.
	if itest.b *${m_serial0} == ff && itest.b *${m_serial1} == 0; then newer=1; fi
	if itest.b *${m_serial1} == ff && itest.b *${m_serial0} == 0; then newer=0; fi
fi

# Addresses of the newer copy, and where the older one is. Shell variables outlive an exchange of the
# environment below.
if test ${newer} = 1; then
	data=${m_data1}; serial=${m_serial1}; place1=${m_block0}; place2=${m_block1}
else
	data=${m_data0}; serial=${m_serial0}; place1=${m_block1}; place2=${m_block0}
fi
setenv BOOT_ORDER
setenv BOOT_A_LEFT
setenv BOOT_B_LEFT
setenv MONOK8S_TRIAL
setenv MONOK8S_TRIES
if test ${newer} != none; then
	# No other variable of it gets into the running environment.
	env import -b ${data} ${m_length} BOOT_ORDER BOOT_A_LEFT BOOT_B_LEFT MONOK8S_TRIAL MONOK8S_TRIES
fi
test -n "${MONOK8S_TRIES}" || setenv MONOK8S_TRIES 3

# On trial is the slot that the trial's text begins with.
trial=none
if test "${MONOK8S_TRIAL}" > "A" -a "${MONOK8S_TRIAL}" < "B"; then trial=A; fi
if test "${MONOK8S_TRIAL}" > "B" -a "${MONOK8S_TRIAL}" < "C"; then trial=B; fi

length=${m_length}
size=${monok8s_env_size}
blocks=${m_blocks}
aside=${m_aside}
new=${m_new}
new_data=${m_new_data}
new_serial=${m_new_serial}
end1=${m_end1}
end2=${m_end2}
back=${m_aside}
left_a=${BOOT_A_LEFT}
left_b=${BOOT_B_LEFT}
order="${BOOT_ORDER}"

# Twice: if no slot has a try left, those that are not on trial get all of theirs back.
started=no
for round in first second; do
	for slot in ${order}; do
		left=0
		if test ${slot} = A && test -n "${left_a}"; then left=${left_a}; fi
		if test ${slot} = B && test -n "${left_b}"; then left=${left_b}; fi
		if test ${started} = no && itest ${left} > 0; then
			setexpr m_left ${left} - 1
			left=${m_left}
			if test ${slot} = A; then left_a=${left}; else left_b=${left}; fi

			# The new copy is made of what was stored and of nothing else, so the running environment
			# is exchanged for it meanwhile. The older copy is replaced first and read back, then the
			# other one: one is whole at every instant, and in the end both have this state.
			stored=no
			env export -b ${aside}
			aside_size=${filesize}
			if env import -d -b ${data} ${length}; then
				setenv BOOT_A_LEFT ${left_a}
				setenv BOOT_B_LEFT ${left_b}
				if env export -b -s ${length} ${new_data}; then stored=made; fi
			fi
			env import -d -b ${aside} ${aside_size}
			if test ${stored} = made && itest.b *${end1} == 0 && itest.b *${end2} == 0; then
				crc32 ${new_data} ${length} ${m_sum}
				run m_turn
				cp.b ${m_crc} ${new} 4
				setexpr.b m_next *${serial} + 1
				mw.b ${new_serial} ${m_next}
				stored=no
				if ${devtype} write ${new} ${place1} ${blocks} && ${devtype} read ${back} ${place1} ${blocks} && cmp.b ${new} ${back} ${size}; then
					stored=yes
					setexpr.b m_next *${new_serial} + 1
					mw.b ${new_serial} ${m_next}
					${devtype} write ${new} ${place2} ${blocks}
				fi
			fi

			if test ${stored} = yes; then
				started=yes
			elif test ${slot} = ${trial}; then
				echo "monok8s: slot ${slot} is on trial and its try cannot be stored: it is passed over"
				setexpr m_left ${left} + 1
				if test ${slot} = A; then left_a=${m_left}; else left_b=${m_left}; fi
			else
				echo "monok8s: WARNING: the try of slot ${slot} cannot be stored: look at the medium of ${monok8s_env_part}"
				started=yes
			fi
			if test ${started} = yes; then
				echo "monok8s: slot ${slot}, tries left: ${left}"
				if test ${slot} = A; then setenv m_name ${monok8s_part_a}; else setenv m_name ${monok8s_part_b}; fi
				setenv slot ${slot}
				part number ${devtype} ${devnum} ${m_name} m_part
				part uuid ${devtype} ${devnum}:${m_part} m_uuid
				# So that the guard knows a trial for one even if it cannot read the environment.
				setenv m_trial
				if test ${slot} = ${trial}; then setenv m_trial monok8s.trial=${MONOK8S_TRIAL}; fi
				setenv bootargs root=PARTUUID=${m_uuid} ${m_trial} ${monok8s_args}
				run monok8s_start
				echo "monok8s: slot ${slot} does not start"
				reset
			fi
		fi
	done
	if test ${started} = no; then
		for slot in ${order}; do
			if test ${slot} = A -a ${trial} != A; then left_a=${MONOK8S_TRIES}; fi
			if test ${slot} = B -a ${trial} != B; then left_b=${MONOK8S_TRIES}; fi
		done
	fi
done

if test ${newer} = none; then
	echo "monok8s: both copies of the environment in ${monok8s_env_part} are damaged or missing."
	echo "monok8s: Nothing is booted and nothing is written. Restore one of them."
else
	echo "monok8s: no slot may boot, BOOT_ORDER is '${BOOT_ORDER}'. Install a slot, and set the order."
fi
echo "monok8s: Ctrl-C leads to the prompt, past whatever else this U-Boot tries to boot."
echo "monok8s: In a minute this starts over, in case the disk was only slow."
while sleep 60; do reset; done
