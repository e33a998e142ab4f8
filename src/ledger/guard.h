/*-------------------------------------------------------------------------
 * guard.h
 *		What nobody may change or remove.
 *-------------------------------------------------------------------------
 */
#ifndef GUARD_H
#define GUARD_H

#include "kavach.h"

extern void guard_install(void);
extern void guard_let_go(Oid partition);
extern bool guard_is_key_of_calls(const char *schema, const char *name);

#endif							/* GUARD_H */
