/* Reads images.bin, 784 bytes an image, and writes logits.bin, ten 32-bit integers an image. Then it prints the time for
 * an image and the stack that was used. Files and output go through semihosting, which QEMU and debuggers have. On a
 * board without a debugger, keep only the call of net_int8_predict. */
#include "net_int8.h"

#ifndef CLOCK
#define CLOCK 16 /* in MHz, of the micro:bit */
#endif
#define BATCH 8
#define SYSTICK ((volatile unsigned *)0xE000E010) /* control, start value, value */

enum { OPEN = 1, WRITE0 = 4, WRITE = 5, READ = 6, EXIT = 0x18 };

extern unsigned stack_bottom[], stack_top[];
extern volatile unsigned systick_wraps;

static unsigned char images[BATCH][784];
static net_int8_logit logits[BATCH][10];
static struct net_int8_scratch scratch;

/* The ticks since the start, modulo 2^32. SysTick alone counts 24 bits: 0.35 s at 48 MHz. */
static unsigned ticks(void)
{
    unsigned wraps, value;

    do {
        wraps = systick_wraps;
        value = SYSTICK[2];
    } while (wraps != systick_wraps);
    return (wraps << 24) + (-value & 0xFFFFFF); /* it counts down, and wraps when it reaches 0 */
}

static unsigned semihost(unsigned operation, const void *argument)
{
    register unsigned r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;

    __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

/* OPEN takes a name, a mode and the name's length, and returns a handle. READ and WRITE take a handle, an address and a
 * length, and return the number of bytes that were not read or written. */
static unsigned file(unsigned operation, const void *name_or_handle, unsigned mode_or_address, unsigned length)
{
    const void *const arguments[] = {name_or_handle, (const void *)mode_or_address, (const void *)length};

    return semihost(operation, arguments);
}

static void print(unsigned number, const char *text)
{
    char digits[11], *p = digits + 10;

    *p = 0;
    do
        *--p = (char)('0' + number % 10);
    while (number /= 10);
    semihost(WRITE0, p);
    semihost(WRITE0, text);
}

int main(void)
{
    const void *const in = (const void *)file(OPEN, "images.bin", 1, 10);  /* 1: rb */
    const void *const out = (const void *)file(OPEN, "logits.bin", 5, 10); /* 5: wb */
    unsigned *unused = stack_bottom, count = 0, microseconds = 0, missing = 0, i, n;

    if (in == (const void *)-1 || out == (const void *)-1) {
        semihost(WRITE0, "images.bin can't be read, or logits.bin can't be written\n");
        semihost(EXIT, (const void *)0x20023); /* exit with an error */
    }
    SYSTICK[1] = 0xFFFFFF;
    SYSTICK[2] = 0;
    SYSTICK[0] = 7; /* start it, with the processor's clock and an interrupt at each wrap */
    while ((n = (sizeof images - (missing = file(READ, in, (unsigned)images, sizeof images))) / 784) > 0) {
        for (i = 0; i < n; i++) {
            const unsigned start = ticks();

            net_int8_predict(images[i], logits[i], &scratch);
            microseconds += (ticks() - start) / CLOCK;
        }
        file(WRITE, out, (unsigned)logits, n * sizeof logits[0]);
        count += n;
    }
    if (missing % 784)
        semihost(WRITE0, "images.bin ends within an image\n");
    while (*unused == 0xA5A5A5A5)
        unused++;
    print(count, " images, each in ");
    print(count ? microseconds / count : 0, " microseconds; stack ");
    print((unsigned)((char *)stack_top - (char *)unused), " bytes, scratch ");
    print(sizeof scratch, " bytes, image 784 bytes\n");
    semihost(EXIT, (const void *)0x20026); /* exit without an error */
    return 0;
}
