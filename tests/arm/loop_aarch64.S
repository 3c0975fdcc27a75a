// One window: 1 + 5 * 1000 + 1 instructions, 8 + 32 bytes loaded and 4 stored in each turn.
.global _start
_start:
    mov x2, #2000
1:  subs x2, x2, #1
    b.ne 1b
    .inst 0xd5032c9f
    mov x0, #1000
2:  ldr x1, [sp]
    ldp q0, q1, [sp]
    str w1, [sp, #-16]
    subs x0, x0, #1
    b.ne 2b
    nop
    .inst 0xd5032cbf
    mov x0, #0
    mov x8, #93
    svc #0
