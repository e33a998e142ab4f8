/*-------------------------------------------------------------------------
 * transaction.h
 *		What the end of a transaction does.
 *-------------------------------------------------------------------------
 */
#ifndef TRANSACTION_H
#define TRANSACTION_H

#include "kavach.h"

extern void transaction_define_settings(void);

#endif							/* TRANSACTION_H */
