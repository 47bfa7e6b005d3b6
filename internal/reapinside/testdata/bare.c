// A program without a libc, as 64 or 32 bit: it sleeps for ever.
void _start(void)
{
	static long span[2] = {3600, 0};
	for (;;) {
#ifdef __i386__
		long r = 162; // nanosleep
		__asm__ volatile("int $0x80" : "+a"(r) : "b"(span), "c"(0) : "memory");
#else
		long r = 35;
		__asm__ volatile("syscall; ret_here: nop" : "+a"(r) : "D"(span), "S"(0L) : "rcx", "r11", "memory");
#endif
	}
}
