// SPDX-License-Identifier: BSD-3-Clause
// The routines of guarded_memory.h. Assembly, because the guard goes by instruction addresses.
#ifndef __x86_64__
#error "write the guarded copy for this processor"
#endif

  .text

// size_t pmirror_guarded_copy(void* to [rdi], const void* from [rsi], size_t length [rdx])
// rcx counts what is left, so that the fixup knows how far it came.
  .globl pmirror_guarded_copy
  .hidden pmirror_guarded_copy
  .type pmirror_guarded_copy, @function
pmirror_guarded_copy:
  .cfi_startproc
  mov %rdx, %rcx
  .globl pmirror_guarded_copy_begin
  .hidden pmirror_guarded_copy_begin
pmirror_guarded_copy_begin:
.Lhead:                       // bytes up to an aligned word of the source
  test %rcx, %rcx
  jz .Ldone
  test $7, %sil
  jz .Laligned8
  movb (%rsi), %al
  movb %al, (%rdi)
  inc %rsi
  inc %rdi
  dec %rcx
  jmp .Lhead
.Laligned8:                   // one word up to 16-byte alignment
  test $15, %sil
  jz .Lblocks
  cmp $8, %rcx
  jb .Ltail
  mov (%rsi), %rax
  mov %rax, (%rdi)
  add $8, %rsi
  add $8, %rdi
  sub $8, %rcx
.Lblocks:
  cmp $64, %rcx
  jb .Lwords
.Lblock:
  movdqa (%rsi), %xmm0
  movdqa 16(%rsi), %xmm1
  movdqa 32(%rsi), %xmm2
  movdqa 48(%rsi), %xmm3
  movdqu %xmm0, (%rdi)
  movdqu %xmm1, 16(%rdi)
  movdqu %xmm2, 32(%rdi)
  movdqu %xmm3, 48(%rdi)
  add $64, %rsi
  add $64, %rdi
  sub $64, %rcx
  cmp $64, %rcx
  jae .Lblock
.Lwords:
  cmp $8, %rcx
  jb .Ltail
  mov (%rsi), %rax
  mov %rax, (%rdi)
  add $8, %rsi
  add $8, %rdi
  sub $8, %rcx
  jmp .Lwords
.Ltail:
  test %rcx, %rcx
  jz .Ldone
  movb (%rsi), %al
  movb %al, (%rdi)
  inc %rsi
  inc %rdi
  dec %rcx
  jmp .Ltail
  .globl pmirror_guarded_copy_end
  .hidden pmirror_guarded_copy_end
pmirror_guarded_copy_end:
  .globl pmirror_guarded_copy_fixup
  .hidden pmirror_guarded_copy_fixup
pmirror_guarded_copy_fixup:
.Ldone:
  mov %rdx, %rax
  sub %rcx, %rax
  ret
  .cfi_endproc
  .size pmirror_guarded_copy, . - pmirror_guarded_copy

// bool pmirror_guarded_touch(void* address [rdi])
  .globl pmirror_guarded_touch
  .hidden pmirror_guarded_touch
  .type pmirror_guarded_touch, @function
pmirror_guarded_touch:
  .cfi_startproc
  .globl pmirror_guarded_touch_begin
  .hidden pmirror_guarded_touch_begin
pmirror_guarded_touch_begin:
  lock addl $0, (%rdi)
  mov $1, %eax
  ret
  .globl pmirror_guarded_touch_end
  .hidden pmirror_guarded_touch_end
pmirror_guarded_touch_end:
  .globl pmirror_guarded_touch_fixup
  .hidden pmirror_guarded_touch_fixup
pmirror_guarded_touch_fixup:
  xor %eax, %eax
  ret
  .cfi_endproc
  .size pmirror_guarded_touch, . - pmirror_guarded_touch

  .section .note.GNU-stack, "", @progbits
