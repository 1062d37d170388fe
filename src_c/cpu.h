/* Which of the backends this processor and operating system can run. */
#ifndef FASTGD_CPU_H
#define FASTGD_CPU_H

/* The x86-64 micro-architecture level: 1 (or 2, not told apart), 3 or 4; 0 on other architectures.
 * A level counts only if the operating system also saves its registers. */
int fastgd_x86_64_level(void);

#endif
