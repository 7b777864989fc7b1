/* The vector table of a Cortex-M, the reset handler, which runs first, and the handler of SysTick's interrupt. */
extern unsigned bss_start[], stack_bottom[], stack_top[];
int main(void);

volatile unsigned systick_wraps;

void systick(void)
{
    systick_wraps++;
}

void reset(void)
{
    unsigned *p = bss_start;

    while (p < stack_bottom)
        *p++ = 0;
    while (p < (unsigned *)__builtin_frame_address(0) - 8) /* not this function's own stack */
        *p++ = 0xA5A5A5A5; /* the stack never reached the words that keep this value */
    main();
    for (;;)
        ;
}

__attribute__((section(".vectors"), used)) static void *const vectors[16] = {
    stack_top, reset, reset, reset, [15] = systick};
