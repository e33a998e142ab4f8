/*-------------------------------------------------------------------------
 * rounds.h
 *		What the worker of a database does, round after round.
 *-------------------------------------------------------------------------
 */
#ifndef ROUNDS_H
#define ROUNDS_H

#include "kavach.h"

extern void rounds_define_settings(void);
extern void rounds_install(void);

#endif							/* ROUNDS_H */
