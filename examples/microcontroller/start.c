/* What a Cortex-M runs first: the vector table, and the reset handler that it names. */
extern unsigned bss_start[], stack_bottom[], stack_top[];
int main(void);

void reset(void)
{
    for (unsigned *p = bss_start; p < stack_bottom; p++)
        *p = 0;
    main();
    for (;;)
        ;
}

__attribute__((section(".vectors"), used)) static void *const vectors[] = {stack_top, reset, reset, reset};
