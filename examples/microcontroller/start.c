/* What a Cortex-M runs first: the vector table, and the reset handler that it names. */
extern unsigned bss_start[], stack_bottom[], stack_top[];
int main(void);

void reset(void)
{
    unsigned *p = bss_start;

    while (p < stack_bottom)
        *p++ = 0;
    while (p < (unsigned *)__builtin_frame_address(0) - 8) /* clear of this function's own */
        *p++ = 0xA5A5A5A5; /* where it is found later, the stack never was */
    main();
    for (;;)
        ;
}

__attribute__((section(".vectors"), used)) static void *const vectors[] = {stack_top, reset, reset, reset};
